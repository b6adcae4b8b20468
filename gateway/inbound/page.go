package inbound

import (
	"bytes"
	"fmt"
	"html"
	"io"
	"net/http"
	"strconv"
	"time"

	"ptgate/gateway/answer"
)

// A page is an HTTP answer of the gateway's own. The text of most is for a person in a
// browser, and the header fields are for programs. Nothing in it comes from the
// destination or from the text of an error.
type page struct {
	status int
	header http.Header
	body   []byte
}

func pageOf(r answer.Reason) page { return textPage(r.HTTP(), r.ProxyStatus(), r.Text()) }

// helpPage answers a request that is for the proxy itself.
func helpPage() page {
	return textPage(http.StatusBadRequest, answer.BadRequest.ProxyStatus(),
		"This is the HTTP proxy of ptgate. It has no pages of its own: set this address as the HTTP "+
			"and HTTPS proxy of your browser or program, for instance with `eval \"$(ptgate env)\"`.")
}

// socksPage answers an HTTP request on a port for SOCKS5 only.
func socksPage() page {
	return textPage(http.StatusBadRequest, answer.BadRequest.ProxyStatus(),
		"This is the SOCKS5 port of ptgate, and this was an HTTP request. Set the program's proxy to socks5h:// with "+
			"this address, or use a port that takes HTTP (listen.mixed or listen.http).")
}

// schemePage answers a request for an https:// or other address.
func schemePage() page {
	return textPage(http.StatusBadRequest, answer.BadRequest.ProxyStatus(),
		"This proxy fetches http:// addresses only. For https:// a program asks the proxy for a tunnel "+
			"(CONNECT): set this address as its HTTPS proxy, too.")
}

func textPage(status int, proxyStatus, text string) page {
	title := html.EscapeString(fmt.Sprintf("%d %s", status, http.StatusText(status)))
	h := http.Header{
		"Content-Type":  {"text/html; charset=utf-8"},
		"Cache-Control": {"no-store"},
		// A browser takes the page for one of the destination's, so it must not run
		// or load anything.
		"Content-Security-Policy": {"default-src 'none'"},
		"X-Content-Type-Options":  {"nosniff"},
	}
	if proxyStatus != "" {
		h["Proxy-Status"] = []string{proxyStatus}
	}
	if status == http.StatusProxyAuthRequired {
		h["Proxy-Authenticate"] = []string{`Basic realm="ptgate", charset="UTF-8"`} // RFC 7617
	}
	return page{status, h, []byte("<!DOCTYPE html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>" + title +
		"</title>\n<h1>" + title + "</h1>\n<p>" + html.EscapeString(text) + "</p>\n<p><small>ptgate</small></p>\n")}
}

// response is the page in the form that goproxy needs.
func (p page) response(r *http.Request) *http.Response {
	return &http.Response{StatusCode: p.status, Header: p.header, Body: io.NopCloser(bytes.NewReader(p.body)), Request: r}
}

// answer gives the page to the writer of a handler.
func (p page) answer(w http.ResponseWriter) {
	for k, v := range p.header {
		w.Header()[k] = v
	}
	w.WriteHeader(p.status)
	w.Write(p.body)
}

// message is the whole answer in bytes. With last, the connection is closed after it; head
// says that the request was HEAD.
func (p page) message(last, head bool) []byte {
	b := new(bytes.Buffer)
	fmt.Fprintf(b, "HTTP/1.1 %d %s\r\nDate: %s\r\nContent-Length: %s\r\n", p.status, http.StatusText(p.status),
		time.Now().UTC().Format(http.TimeFormat), strconv.Itoa(len(p.body)))
	p.header.Write(b)
	if last {
		b.WriteString("Connection: close\r\n")
	}
	b.WriteString("\r\n")
	if !head {
		b.Write(p.body)
	}
	return b.Bytes()
}
