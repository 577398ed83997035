// The campaign's form: shows the fields of the chosen format alone, and each creative as it is being written.
// Without it everything is there, and previews are of what is saved.
"use strict";
{
    const PAUSE_MS = 400;
    let previews = 0;
    const FORMATS = ["image", "text", "html", "native"];

    const fieldOf = (creative, name) => creative.querySelector(`[name$="-${name}"]`);

    // An error beside a field that is not shown would be a riddle; once the format changes it is gone.
    function showFormat(creative, withErrors) {
        const chosen = fieldOf(creative, "format").value;
        for (const format of FORMATS) {
            const fieldset = creative.querySelector(`fieldset.for-${format}`);
            if (!fieldset) continue;
            const shown = format === chosen || (withErrors && fieldset.querySelector(".errors"));
            fieldset.classList.toggle("other-format", !shown);
        }
    }

    // Sends the creative's fields to the frame, in a form of their own.
    function preview(creative) {
        const box = creative.querySelector(".preview");
        // A frame of its own each time: one that has loaded keeps the name that it had then.
        const frame = box.querySelector("iframe").cloneNode();
        const [width, height] = fieldOf(creative, "size").value.split("x");
        frame.width = width || 300;
        frame.height = height || 60;
        frame.name = `preview-${++previews}`;
        frame.loading = "eager";
        frame.removeAttribute("src");
        box.querySelector("iframe").replaceWith(frame);
        const form = document.createElement("form");
        form.method = "post";
        form.enctype = "multipart/form-data";
        form.action = box.dataset.previewUrl;
        form.target = frame.name;
        form.hidden = true;
        form.append(document.querySelector("[name=csrfmiddlewaretoken]").cloneNode());
        for (const field of creative.querySelectorAll("input, select, textarea")) {
            const found = /^.+-(?:\d+)-([a-z_]+)$/.exec(field.name);
            if (!found) continue;
            const copy = document.createElement("input");
            copy.name = found[1];
            if (field.type === "file") {
                if (!field.files.length) continue;
                copy.type = "file";
                copy.files = field.files;
            } else {
                copy.type = "hidden";
                copy.value = field.value;
            }
            form.append(copy);
        }
        document.body.append(form);
        form.submit();
        setTimeout(() => form.remove()); // a form that is gone is not sent
    }

    function follow(creative) {
        if (!fieldOf(creative, "format") || !creative.querySelector("[data-preview-url]")) return;
        let timer;
        creative.addEventListener("input", (event) => {
            if (event.target === fieldOf(creative, "format")) showFormat(creative, false);
            clearTimeout(timer);
            timer = setTimeout(preview, PAUSE_MS, creative);
        });
        showFormat(creative, true);
    }

    document.addEventListener("DOMContentLoaded", () => {
        for (const creative of document.querySelectorAll(".creative:not(.empty-form)")) follow(creative);
    });
    document.addEventListener("formset:added", (event) => {
        if (event.target.matches(".creative")) follow(event.target);
    });
}
