// Which way a destination takes: written by ptgate from its routes. Nothing is looked up
// here. S has the patterns: kind, ports, group, and names, whose labels stand in reverse.
// A capital letter begins a name, and says how many characters it shares with the one before.
// Groups come in the order of the file, and the first one that matches decides. G has a
// letter for each: P goes to ptgate, D directly, W too if it is no literal address.
var M = {};
(function () {
	for (var i = 0; i < S.length; i++) {
		var all = S[i][4].split(/(?=[A-Z])/), name = "";
		for (var j = 0; j < all.length; j++) {
			name = name.substr(0, all[j].charCodeAt(0) - 65) + all[j].substr(1);
			var key = S[i][0] + name;
			M[key] = M[key] === undefined ? i : [].concat(M[key], i);
		}
	}
})();

function first(key, port, best) {
	var found = M[key];
	if (found === undefined) return best;
	found = [].concat(found);
	for (var i = 0; i < found.length; i++) {
		var s = S[found[i]];
		if (s[3] < best && s[1] <= port && port <= s[2]) best = s[3];
	}
	return best;
}

function portOf(url) {
	var m = /^([a-z][a-z0-9+.-]*):\/\/([^\/?#]*)/i.exec(url);
	if (!m) return 0;
	var port = /:([0-9]+)$/.exec(m[2]);
	if (port) return +port[1];
	switch (m[1].toLowerCase()) {
	case "http": case "ws": return 80;
	case "https": case "wss": return 443;
	case "ftp": return 21;
	}
	return 0;
}

function hex(n, digits) {
	n = n.toString(16);
	while (n.length < digits) n = "0" + n;
	return n;
}

// An address in hexadecimal digits; "" if it is none.
function address4(host) {
	if (!/^[0-9]+(\.[0-9]+){3}$/.test(host)) return "";
	var parts = host.split("."), out = "";
	for (var i = 0; i < 4; i++) {
		if (parts[i].length > 3 || +parts[i] > 255) return "";
		out += hex(+parts[i], 2);
	}
	return out;
}

function address6(host) {
	var tail = /^(.*:)([0-9.]+\.[0-9.]+)$/.exec(host);
	if (tail) {
		var low = address4(tail[2]);
		if (!low) return "";
		host = tail[1] + low.substr(0, 4) + ":" + low.substr(4);
	}
	var halves = host.split("::");
	if (halves.length > 2) return "";
	var left = halves[0] ? halves[0].split(":") : [], right = halves[1] ? halves[1].split(":") : [];
	var missing = 8 - left.length - right.length;
	if (missing < 0 || missing > 0 && halves.length === 1) return "";
	for (; missing > 0; missing--) left.push("0");
	var all = left.concat(right), out = "";
	for (var i = 0; i < 8; i++) {
		if (!/^[0-9a-f]{1,4}$/.test(all[i])) return "";
		out += hex(parseInt(all[i], 16), 4);
	}
	return out;
}

function literal(address, kind, lengths, port) {
	var best = first(".", port, G.length);
	for (var i = 0; i < lengths.length; i++) {
		var n = lengths[i], start = address.substr(0, n >> 2), rest = n & 3;
		if (rest) start += (parseInt(address.charAt(n >> 2), 16) & (15 << (4 - rest))).toString(16);
		best = first(kind + n + "/" + start, port, best);
	}
	return G.charAt(best) === "D" ? "DIRECT" : P;
}

function FindProxyForURL(url, host) {
	host = host.toLowerCase().replace(/^\[|\]$/g, "").replace(/\.$/, "");
	var port = portOf(url), address = address4(host);
	if (host === "localhost" || host === "::1" || address.substr(0, 2) === "7f") return "DIRECT";
	if (address) return literal(address, "4", B4, port);
	if (host.indexOf(":") >= 0) {
		address = address6(host);
		if (!address) return P;
		if (/^0{20}ffff/.test(address)) return literal(address.substr(24), "4", B4, port);
		return literal(address, "6", B6, port);
	}
	var labels = host.split("."), name = "", best = first(".", port, G.length);
	if (!host || /^([0-9]+|0x[0-9a-f]*)$/.test(labels[labels.length - 1])) return P;
	for (var i = labels.length - 1; i > 0; i--) {
		name += labels[i];
		best = first("*" + name, port, first("." + name, port, best));
		name += ".";
	}
	name += labels[0];
	best = first("=" + name, port, first("." + name, port, best));
	return best < G.length && G.charAt(best) !== "P" ? "DIRECT" : P;
}
