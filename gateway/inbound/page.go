package inbound

import (
	"fmt"
	"html"
	"io"
	"net/http"
	"strconv"
	"strings"

	"ptgate/gateway/answer"
)

// A page is an HTTP answer of the gateway's own. Its text is for a person in a browser,
// and its header fields are for programs. Nothing in it comes from the client, from the
// destination or from the text of an error.
type page struct {
	status      int
	proxyStatus string
	text        string
}

func pageOf(r answer.Reason) page { return page{r.HTTP(), r.ProxyStatus(), r.Text()} }

// helpPage answers a request that is for the proxy itself.
func helpPage() page {
	return page{http.StatusBadRequest, answer.BadRequest.ProxyStatus(),
		"This is the HTTP proxy of ptgate. It has no pages of its own: set this address as the HTTP " +
			"and HTTPS proxy of your browser or program, for instance with `eval \"$(ptgate env)\"`."}
}

// schemePage answers a request for an https:// or other address.
func schemePage() page {
	return page{http.StatusBadRequest, answer.BadRequest.ProxyStatus(),
		"This proxy fetches http:// addresses only. For https:// a program asks the proxy for a tunnel " +
			"(CONNECT): set this address as its HTTPS proxy, too."}
}

// render returns the page's header fields and its body.
func (p page) render() (http.Header, string) {
	title := html.EscapeString(fmt.Sprintf("%d %s", p.status, http.StatusText(p.status)))
	body := "<!DOCTYPE html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>" + title +
		"</title>\n<h1>" + title + "</h1>\n<p>" + html.EscapeString(p.text) + "</p>\n<p><small>ptgate</small></p>\n"
	h := http.Header{
		"Content-Type":   {"text/html; charset=utf-8"},
		"Content-Length": {strconv.Itoa(len(body))},
		"Cache-Control":  {"no-store"},
		// A browser takes the page for one of the destination's, so it must not run
		// or load anything.
		"Content-Security-Policy": {"default-src 'none'"},
		"X-Content-Type-Options":  {"nosniff"},
	}
	if p.proxyStatus != "" {
		h["Proxy-Status"] = []string{p.proxyStatus}
	}
	if p.status == http.StatusProxyAuthRequired {
		h["Proxy-Authenticate"] = []string{`Basic realm="ptgate", charset="UTF-8"`} // RFC 7617
	}
	return h, body
}

// response is the page in the form that goproxy needs.
func (p page) response(r *http.Request) *http.Response {
	h, body := p.render()
	return &http.Response{
		StatusCode: p.status, ProtoMajor: 1, ProtoMinor: 1,
		Header: h, Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body)),
		Close:   true, // for message; net/http decides by itself
		Request: r,
	}
}

// message is the whole answer in bytes, for a connection that is closed after it.
func (p page) message() string {
	var b strings.Builder
	p.response(nil).Write(&b)
	return b.String()
}

// write sends the page as the answer of an HTTP handler.
func (p page) write(w http.ResponseWriter) {
	h, body := p.render()
	for k, v := range h {
		w.Header()[k] = v
	}
	w.WriteHeader(p.status)
	io.WriteString(w, body)
}
