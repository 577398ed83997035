/* adcore's tag: fills every <ins data-adcore-placement="P"> of the page, all in one request.
   <script async src="https://ads.example.net/v1/tag.js"></script>
   Page facts: data-adcore-keywords="a,b" and data-adcore-kv-NAME="V" on the slots. Sends nothing that names a person. */
(function () {
  "use strict";
  var script = document.currentScript;
  if (!script || !window.fetch) return;
  var base = new URL(script.src).origin;

  function slots() {
    return [].slice.call(document.querySelectorAll("ins[data-adcore-placement]:not([data-adcore-done])"));
  }

  function query(all) {
    var facts = new URLSearchParams(), keywords = {}, values = {};
    facts.set("placement", all.map(function (slot) { return slot.getAttribute("data-adcore-placement"); }).join(","));
    facts.set("n", "1");
    all.forEach(function (slot) {
      [].forEach.call(slot.attributes, function (attribute) {
        var name = attribute.name, kv = "data-adcore-kv-";
        if (name === "data-adcore-keywords") {
          attribute.value.split(",").forEach(function (word) { keywords[word] = 1; });
        } else if (name.indexOf(kv) === 0) {
          values["kv." + name.slice(kv.length)] = attribute.value;
        }
      });
    });
    if (Object.keys(keywords).length) facts.set("keywords", Object.keys(keywords).join(","));
    Object.keys(values).forEach(function (name) { facts.set(name, values[name]); });
    return facts.toString();
  }

  function element(name, parent, text) {
    var made = document.createElement(name);
    if (text) made.textContent = text;
    return parent.appendChild(made);
  }

  function isWeb(url) { return /^https?:\/\//i.test(url || ""); }

  function show(slot, decision) {
    var creative = decision.creative, data = creative.data || {}, frame, link, image;
    slot.style.cssText += ";display:inline-block;text-decoration:none;overflow:hidden;width:" +
      creative.width + "px;height:" + creative.height + "px";
    if (creative.format === "html") {
      frame = element("iframe", slot);
      frame.setAttribute("sandbox", "allow-scripts allow-popups allow-popups-to-escape-sandbox");
      frame.title = "Ad";
      frame.width = creative.width;
      frame.height = creative.height;
      frame.style.border = "0";
      frame.srcdoc = creative.html.split("{click_url}").join(
        new URL(decision.click_url, base).href.replace(/&/g, "&amp;").replace(/"/g, "&quot;"));
    } else {
      link = element("a", slot);
      link.href = new URL(decision.click_url, base).href;
      link.target = "_blank";
      link.rel = "noopener sponsored";
      if (creative.format === "image") {
        image = element("img", link);
        image.alt = creative.alt;
        image.width = creative.width;
        image.height = creative.height;
        image.src = creative.image_url;
      } else {
        element("strong", link, data.title);
        if (isWeb(data.image_url)) element("img", link).src = data.image_url;
        element("span", link, (data.title ? " " : "") + (data.text || ""));
        if (data.cta) element("strong", link, " " + data.cta);
      }
    }
    watch(slot, new URL(decision.view_url, base).href);
  }

  /* MRC: half of the pixels in view for one second, once. */
  function watch(slot, url) {
    var timer, observer;
    if (!window.IntersectionObserver) return;
    observer = new IntersectionObserver(function (entries) {
      clearTimeout(timer);
      if (entries[entries.length - 1].intersectionRatio < 0.5) return;
      timer = setTimeout(function () {
        observer.disconnect();
        fetch(url, { keepalive: true, mode: "no-cors" }).catch(function () {});
      }, 1000);
    }, { threshold: [0, 0.5] });
    observer.observe(slot);
  }

  function fill() {
    var all = slots();
    if (!all.length) return;
    all.forEach(function (slot) { slot.setAttribute("data-adcore-done", ""); });
    fetch(base + "/v1/decision?" + query(all), { credentials: "include" })
      .then(function (answer) { return answer.status === 200 ? answer.json() : { decisions: [] }; })
      .then(function (answer) {
        answer.decisions.forEach(function (decision) {
          for (var i = 0; i < all.length; i++) {
            if (all[i] && all[i].getAttribute("data-adcore-placement") === decision.placement) {
              show(all[i], decision);
              all[i] = null;
              break;
            }
          }
        });
      })
      .catch(function () {});
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", fill);
  else fill();
})();
