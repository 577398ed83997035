/* adcore's tag: fills every <ins data-adcore-placement="P"> of the page, all in one request.
   <script async src="https://ads.example.net/v1/tag.js"></script>
   A slot keeps its place from the first with style="display:inline-block;width:300px;height:250px", and from when this
   has loaded with data-adcore-size="300x250". data-adcore-lazy waits until it is nearly in sight;
   data-adcore-keywords="a,b" and data-adcore-kv-NAME="V" say what the page is about. Then data-adcore-state is "waiting",
   "loading", "filled" or "empty". adcore.fill() fills slots that were added later.
   Sends nothing that names a person, and no cookies where the browser says Global Privacy Control. */
(function () {
  "use strict";
  var script = document.currentScript, SLOTS_MAX = 32;
  if (!script || !script.src || !window.fetch) return;

  function absolute(url) { return new URL(url, script.src).href; }

  function reserve(slot, width, height) {
    var style = slot.style;
    style.display = "inline-block";
    style.width = width + "px";
    style.height = height + "px";
    style.overflow = "hidden";
    style.textDecoration = "none";
  }

  function query(slots) {
    var facts = new URLSearchParams(), keywords = [];
    facts.set("placement", slots.map(function (slot) { return slot.getAttribute("data-adcore-placement"); }).join(","));
    slots.forEach(function (slot) {
      [].forEach.call(slot.attributes, function (attribute) {
        var key = /^data-adcore-kv-(.+)/.exec(attribute.name);
        if (attribute.name === "data-adcore-keywords") keywords = keywords.concat(attribute.value.split(","));
        if (!key) return;
        key = "kv." + key[1];
        if (facts.getAll(key).indexOf(attribute.value) < 0) facts.append(key, attribute.value);
      });
    });
    keywords = keywords.filter(function (word, at) { return word.trim() && keywords.indexOf(word) === at; });
    if (keywords.length) facts.set("keywords", keywords.join(","));
    return facts;
  }

  function add(parent, name, text) {
    var made = document.createElement(name);
    if (text) made.textContent = text;
    return parent.appendChild(made);
  }

  function text(value) { return typeof value === "string" ? value : ""; }

  function showHtml(slot, creative, click) {
    var frame = document.createElement("iframe");
    frame.setAttribute("sandbox", "allow-scripts allow-popups allow-popups-to-escape-sandbox");
    frame.title = "Advertisement";
    frame.width = creative.width;
    frame.height = creative.height;
    frame.style.border = "0";
    frame.srcdoc = '<!DOCTYPE html><base target="_blank"><style>html,body{margin:0;height:100%}</style>' +
      creative.html.split("{click_url}").join(click.replace(/&/g, "&amp;").replace(/"/g, "&quot;"));
    slot.appendChild(frame);
  }

  function showLink(slot, creative, click) {
    var link = add(slot, "a"), data = creative.data || {}, image;
    link.href = click;
    link.target = "_blank";
    link.rel = "noopener sponsored";
    link.style.cssText = "display:block;height:100%;color:inherit;text-decoration:none";
    if (creative.format === "image") {
      image = add(link, "img");
      image.alt = creative.alt || "Advertisement";
      image.width = creative.width;
      image.height = creative.height;
      image.src = creative.image_url;
      return;
    }
    if (text(data.title)) add(link, "strong", data.title).style.display = "block";
    if (/^https?:\/\//i.test(text(data.image_url))) {
      image = add(link, "img");
      image.alt = "";
      image.style.cssText = "display:block;max-width:100%;max-height:50%";
      image.src = data.image_url;
    }
    if (text(data.text)) add(link, "span", data.text).style.display = "block";
    if (text(data.cta)) add(link, "strong", data.cta).style.display = "block";
    if (!link.textContent) link.setAttribute("aria-label", "Advertisement");
  }

  /* The MRC's rule for display ads: half of the pixels in a visible tab for one second, once. */
  function watch(slot, url) {
    var ratio = 0, timer, observer;
    if (!window.IntersectionObserver) return;
    function check() {
      clearTimeout(timer);
      if (ratio >= 0.5 && !document.hidden) timer = setTimeout(report, 1000);
    }
    function report() {
      observer.disconnect();
      document.removeEventListener("visibilitychange", check);
      fetch(url, { mode: "no-cors", credentials: "omit", keepalive: true }).catch(function () {});
    }
    observer = new IntersectionObserver(function (entries) {
      ratio = entries[entries.length - 1].intersectionRatio;
      check();
    }, { threshold: [0, 0.5] });
    document.addEventListener("visibilitychange", check);
    observer.observe(slot);
  }

  function show(slot, decision) {
    var creative = decision.creative, click = absolute(decision.click_url);
    reserve(slot, creative.width, creative.height);
    (creative.format === "html" ? showHtml : showLink)(slot, creative, click);
    slot.setAttribute("data-adcore-state", "filled");
    watch(slot, absolute(decision.view_url));
  }

  /* Decisions come in the order of the slots; a slot that got nothing has none. */
  function place(slots, decisions) {
    decisions.forEach(function (decision) {
      var slot = slots.filter(function (one) {
        return one.getAttribute("data-adcore-state") === "loading" &&
          one.getAttribute("data-adcore-placement") === decision.placement;
      })[0];
      try { if (slot) show(slot, decision); } catch (error) { slot.textContent = ""; }
    });
  }

  function ask(slots) {
    fetch(absolute("decision?" + query(slots)), {
      credentials: navigator.globalPrivacyControl ? "omit" : "include"
    }).then(function (answer) {
      return answer.status === 200 ? answer.json() : { decisions: [] };
    }).then(function (answer) {
      place(slots, answer.decisions || [answer]);
    }).catch(function () {}).then(function () {
      slots.forEach(function (slot) {
        if (slot.getAttribute("data-adcore-state") === "loading") slot.setAttribute("data-adcore-state", "empty");
      });
    });
  }

  function load(slots) {
    slots.forEach(function (slot) { slot.setAttribute("data-adcore-state", "loading"); });
    for (var at = 0; at < slots.length; at += SLOTS_MAX) ask(slots.slice(at, at + SLOTS_MAX));
  }

  /* Slots that are not wanted before they are nearly in sight. */
  var waiting = window.IntersectionObserver && new IntersectionObserver(function (entries) {
    load(entries.filter(function (entry) { return entry.isIntersecting; }).map(function (entry) {
      waiting.unobserve(entry.target);
      return entry.target;
    }));
  }, { rootMargin: "200px" });

  function fill() {
    load([].filter.call(document.querySelectorAll("ins[data-adcore-placement]:not([data-adcore-state])"), function (slot) {
      var size = /^(\d+)x(\d+)$/.exec(slot.getAttribute("data-adcore-size") || "");
      if (size) reserve(slot, size[1], size[2]);
      if (!waiting || !slot.hasAttribute("data-adcore-lazy")) return true;
      slot.setAttribute("data-adcore-state", "waiting");
      waiting.observe(slot);
    }));
  }

  window.adcore = { fill: fill };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", fill);
  else fill();
})();
