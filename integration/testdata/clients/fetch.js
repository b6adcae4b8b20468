// Fetches pages with undici, and prints a line for each.
//
//     node fetch.js CA-FILE HTTP-URL HTTPS-URL PORT...
const fs = require("fs");
const { ProxyAgent, fetch, request } = require("undici");

(async () => {
	const [caFile, plain, tls, ...ports] = process.argv.slice(2);
	for (const port of ports) {
		const dispatcher = new ProxyAgent({ uri: "http://127.0.0.1:" + port, requestTls: { ca: fs.readFileSync(caFile) } });
		for (const url of [plain, tls]) {
			process.stdout.write("fetch: " + await (await fetch(url, { dispatcher })).text());
			process.stdout.write("request: " + await (await request(url, { dispatcher })).body.text());
		}
		await dispatcher.close();
	}
})();
