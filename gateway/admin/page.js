"use strict";
// Keeps the page up to date while it is looked at. Without this script it is whole, too.
const again = 10000; // milliseconds
let source = null;
const lost = document.getElementById("lost");

function connect() {
	if (source || document.hidden) return;
	source = new EventSource("/events");
	source.onopen = () => { lost.hidden = true; };
	source.onerror = () => {
		lost.hidden = false;
		// The browser tries again by itself, but not after an answer that is an error.
		if (source.readyState !== EventSource.CLOSED) return;
		source = null;
		setTimeout(connect, again);
	};
	source.onmessage = event => {
		const fresh = new DOMParser().parseFromString(event.data, "text/html").querySelectorAll("[data-live]");
		// Another configuration can have other parts.
		if (fresh.length !== document.querySelectorAll("[data-live]").length) location.reload();
		for (const part of fresh) show(part);
	};
}

// show replaces a part, but for one with a selection that somebody is about to copy.
function show(part) {
	const here = document.getElementById(part.id), selection = getSelection();
	if (!here || here.innerHTML === part.innerHTML || !selection.isCollapsed && selection.containsNode(here, true)) return;
	const focus = here.contains(document.activeElement) ? document.activeElement.id : "";
	here.innerHTML = part.innerHTML;
	if (focus) document.getElementById(focus)?.focus({preventScroll: true});
}

document.addEventListener("visibilitychange", () => {
	if (document.hidden && source) {
		source.close();
		source = null;
	}
	connect();
});
connect();

// Which way a name goes is asked beside the page, so that the name is in no history of the
// browser. The page's own address may have a password in it, which fetch does not take.
const ask = document.querySelector("form"), answer = document.getElementById("answer");
ask?.addEventListener("submit", async event => {
	event.preventDefault();
	try {
		const page = await (await fetch(location.origin + "/?" + new URLSearchParams(new FormData(ask)))).text();
		answer.innerHTML = new DOMParser().parseFromString(page, "text/html").getElementById("answer").innerHTML;
	} catch {
		answer.textContent = "There is no answer: ptgate does not run, or refuses.";
	}
});

for (const button of document.querySelectorAll("button[data-copy]")) {
	button.hidden = !navigator.clipboard;
	button.addEventListener("click", async () => {
		await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
		button.textContent = "Copied";
	});
}
