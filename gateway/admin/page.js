"use strict";
// Keeps the page up to date while it is looked at. Without this script it is whole, too.
let source = null;
const lost = document.getElementById("lost");

function connect() {
	if (source || document.hidden) return;
	source = new EventSource("/events");
	source.onopen = () => { lost.hidden = true; };
	source.onerror = () => { lost.hidden = false; };
	source.onmessage = event => {
		const fresh = new DOMParser().parseFromString(event.data, "text/html");
		for (const part of fresh.querySelectorAll("[data-live]")) {
			const here = document.getElementById(part.id);
			if (here && here.innerHTML !== part.innerHTML) here.innerHTML = part.innerHTML;
		}
	};
}

document.addEventListener("visibilitychange", () => {
	if (document.hidden && source) {
		source.close();
		source = null;
	}
	connect();
});
connect();

for (const button of document.querySelectorAll("button[data-copy]")) {
	button.hidden = !navigator.clipboard;
	button.addEventListener("click", async () => {
		await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
		button.textContent = "Copied";
	});
}
