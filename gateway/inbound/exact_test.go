package inbound

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"testing"

	"ptgate/gateway/answer"
)

// A message is one request and its response: what is sent, and what must arrive.
type message struct {
	request, atOrigin  string
	response, atClient string
	fresh              bool // the request needs a new connection to the origin
	closes             bool // the response ends the client's connection
	originCloses       bool // the origin closes its connection behind the response
}

// A recorder is an origin. It compares what comes with what must come, byte for byte, and
// sends the response.
type recorder struct {
	t    testing.TB
	jobs chan message
	got  chan error // for each job
}

func (r *recorder) serve(c *net.TCPConn) {
	in := bufio.NewReader(c)
	for n := 0; ; n++ {
		if _, err := in.Peek(1); err != nil {
			return
		}
		m := <-r.jobs
		b := make([]byte, len(m.atOrigin))
		k, err := io.ReadFull(in, b)
		switch {
		case string(b[:k]) != m.atOrigin:
			err = fmt.Errorf("the origin got\n%q, want\n%q (%v)", b[:k], m.atOrigin, err)
		case in.Buffered() > 0:
			rest, _ := in.Peek(in.Buffered())
			err = fmt.Errorf("the origin got %q more than %q", rest, m.atOrigin)
		case m.fresh && n > 0:
			err = fmt.Errorf("the origin got %q on a connection that had another request", m.atOrigin)
		}
		r.got <- err
		if err != nil {
			return
		}
		io.WriteString(c, m.response)
		if m.originCloses {
			return
		}
	}
}

// exchangeAll sends the messages to a front, one after the other, and compares what comes
// back. split cuts what is sent into pieces.
func exchangeAll(t *testing.T, messages []message, split func(string) []string) {
	t.Helper()
	r := &recorder{t, make(chan message, 1), make(chan error, 1)}
	// The gateway is given the time to see that it has sent all of the content, before the
	// response comes: else it would end the client's connection.
	g := start(t, HTTP, to(serve(t, r.serve)), func(s *Settings, _ *Config) { s.grace = patience })
	var p *peer
	for i, m := range messages {
		if p == nil {
			p = connect(t, g.addr)
			p.SetNoDelay(true)
		}
		r.jobs <- m
		for _, piece := range split(m.request) {
			p.send(piece)
		}
		if err := <-r.got; err != nil {
			t.Fatalf("message %d: sent\n%q:\n%v", i, m.request, err)
		}
		b := make([]byte, len(m.atClient))
		n, err := io.ReadFull(p.r, b)
		if string(b[:n]) != m.atClient {
			t.Fatalf("message %d: the origin sent\n%q, the client got\n%q, want\n%q (%v)", i, m.response, b[:n], m.atClient, err)
		}
		if m.closes {
			if s := p.rest(); s != "" {
				t.Fatalf("message %d: then came %q", i, s)
			}
			p = nil
		} else if n := p.r.Buffered(); n > 0 {
			rest, _ := p.r.Peek(n)
			t.Fatalf("message %d: then came %q", i, rest)
		}
	}
}

func whole(s string) []string { return []string{s} }

// What is passed on, clause by clause. A request has "GET http://a.example/ HTTP/1.1" and
// Host before its fields, and a response "HTTP/1.1 200 OK", unless they begin otherwise.
func TestExact(t *testing.T) {
	const get, host, ok = "GET http://a.example/ HTTP/1.1\r\n", "Host: a.example\r\n", "HTTP/1.1 200 OK\r\n"
	const empty = "Content-Length: 0\r\n\r\n"
	request := func(line, there, fields, content string) func(*message) {
		return func(m *message) {
			m.request = line + " HTTP/1.1\r\n" + host + fields + "\r\n" + content
			m.atOrigin = there + " HTTP/1.1\r\n" + host + fields + "\r\n" + content
			m.fresh = !strings.HasPrefix(line, "GET") && !strings.HasPrefix(line, "OPTIONS")
		}
	}
	target := func(there, here string) func(*message) { return request("GET "+there, "GET "+here, "", "") }
	fields := func(in, out string) func(*message) {
		return func(m *message) {
			m.request = get + host + in + "\r\n"
			m.atOrigin = "GET / HTTP/1.1\r\n" + host + out + "\r\n"
		}
	}
	response := func(in, out string) func(*message) {
		return func(m *message) {
			m.response, m.atClient = in, out
			m.closes = strings.Contains(out, "Connection: close\r\n") || strings.Contains(out, ", close\r\n")
		}
	}
	same := func(in string) func(*message) { return response(in, in) }
	var messages []message
	for _, change := range []func(*message){
		// The target (RFC 9112 section 3.2).
		target("http://a.example/100%", "/100%"),
		target("http://a.example/a{b}%2Fc", "/a{b}%2Fc"),
		target("http://a.example/\"^|`<>\\", "/\"^|`<>\\"),
		target("http://a.example/\xc3\xa9\xff?\xe2\x82\xac", "/\xc3\xa9\xff?\xe2\x82\xac"),
		target("http://a.example//..//./%2e%2E;x?a=b?c&&d", "//..//./%2e%2E;x?a=b?c&&d"),
		target("http://a.example?q", "/?q"),
		target("http://a.example", "/"),
		target("http://a.example#f", "/"),
		target("http://a.example/x?y#f?z#g", "/x?y"),
		target("HTTP://a.example/http://b.example/@", "/http://b.example/@"),
		target("http://us%20er:pass@a.example/@x", "/@x"),
		target("ws://a.example/chat", "/chat"),
		request("OPTIONS http://a.example", "OPTIONS *", "", ""),
		request("OPTIONS http://a.example/", "OPTIONS /", "", ""),
		request("OPTIONS http://a.example?x", "OPTIONS /?x", "", ""),
		request("m-SEARCH http://a.example/x", "m-SEARCH /x", "", ""),
		func(m *message) { m.request = "\r\n\n\r\n" + m.request },

		// Host (RFC 9112 section 3.2.2).
		func(m *message) {
			m.request = get + "X: y\r\nhOST:\t b.example\r\nY: z\r\n\r\n"
			m.atOrigin = "GET / HTTP/1.1\r\nX: y\r\nhOST: a.example\r\nY: z\r\n\r\n"
		},
		func(m *message) {
			m.request = "GET http://A.example.:080/ HTTP/1.1\r\nHost:\r\n\r\n"
			m.atOrigin = "GET / HTTP/1.1\r\nHost: A.example.:080\r\n\r\n"
		},
		func(m *message) {
			m.request = "GET http://a.example/ HTTP/1.0\r\nAccept: x\r\nConnection: keep-alive\r\nExpect: 100-continue\r\nTE: trailers\r\n\r\n"
			m.atOrigin = "GET / HTTP/1.1\r\nHost: a.example\r\nAccept: x\r\n\r\n"
			m.atClient = strings.Replace(m.response, "\r\n\r\n", "\r\nConnection: close\r\n\r\n", 1)
			m.closes = true
		},

		// Fields (RFC 9110 sections 5 and 7.6.1).
		fields("aCCept: x\r\nX-a:y  \r\nx-A: \tz\r\nX-Empty:\r\nX-Odd: \x01\"\xff\r\n", "aCCept: x\r\nX-a:y  \r\nx-A: \tz\r\nX-Empty:\r\nX-Odd: \x01\"\xff\r\n"),
		fields("Cookie: a\r\nCookie: b\r\nUser-Agent:\r\nAccept-Encoding: br\r\nVia: 1.0 x\r\nAuthorization: y\r\n",
			"Cookie: a\r\nCookie: b\r\nUser-Agent:\r\nAccept-Encoding: br\r\nVia: 1.0 x\r\nAuthorization: y\r\n"),
		fields("X: y\r\nconnection: x, Keep-Alive\r\nkeep-alive: 5\r\nProxy-Connection: keep-alive\r\nProxy-Authorization: Basic x\r\nZ: a\r\n", "Z: a\r\n"),
		fields("Connection: Host, Content-Length, Accept\r\nContent-Length: 0\r\nAccept: x\r\n", "Content-Length: 0\r\n"),
		fields("TE: trailers, deflate;q=0.5\r\nX: y\r\n", "X: y\r\nTE: trailers\r\nConnection: TE\r\n"),
		fields("TE: gzip\r\n", ""),
		fields("Upgrade: h2c\r\nX: y\r\n", "X: y\r\n"),
		fields("Connection: upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n", "Upgrade: h2c\r\nHTTP2-Settings: x\r\nConnection: Upgrade, HTTP2-Settings\r\n"),
		fields("Max-Forwards: 0\r\n", "Max-Forwards: 0\r\n"), // of OPTIONS and TRACE only
		fields("Content-Length: 0, 0\r\n", "Content-Length: 0\r\n"),
		fields("Expect: 100-continue\r\n", "Expect: 100-continue\r\n"),
		func(m *message) { m.request = strings.ReplaceAll(m.request, "\r\n", "\n") },
		func(m *message) {
			m.request = "OPTIONS http://a.example HTTP/1.1\r\nHost: a.example\r\nMax-Forwards: 10\r\nX: y\r\n\r\n"
			m.atOrigin = "OPTIONS * HTTP/1.1\r\nHost: a.example\r\nMax-Forwards: 9\r\nX: y\r\n\r\n"
		},

		// Content.
		request("POST http://a.example/", "POST /", "Content-Length: 3\r\n", "\x00\r\n"),
		request("GET http://a.example/", "GET /", "content-LENGTH: 003\r\n", "abc"),
		request("PUT http://a.example/", "PUT /", "Content-Length: 100000\r\n", strings.Repeat("0123456789", 10000)),
		request("POST http://a.example/", "POST /", "Transfer-Encoding: chunked\r\n", "3;x=\"y z\"\r\nabc\r\n0\r\n\r\n"),
		request("POST http://a.example/", "POST /", "Trailer: X-t\r\nTransfer-Encoding: chunked\r\n", "1\r\na\r\n000\r\nX-t:  y \r\nx-T: z\r\n\r\n"),
		request("POST http://a.example/", "POST /", "transfer-encoding: chunked\r\n", "C350\r\n"+strings.Repeat("01234", 10000)+"\r\n0\r\n\r\n"),
		func(m *message) {
			m.request = "POST http://a.example/ HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: Chunked\r\n\r\n0\r\nContent-Length: 5\r\nHost: b\r\nX: y\r\n\r\n"
			m.atOrigin = "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\n\r\n"
			m.fresh = true
		},

		// Responses.
		same("HTTP/1.1 200 \r\n" + empty),
		same("HTTP/1.1 299 Any \xc3\xa9 (reason)  \r\nsERVER:x\r\nX: \r\nx:\ty\r\n" + empty),
		same(ok + "Set-Cookie: a\r\nSet-Cookie: b\r\n" + empty),
		same("HTTP/1.1 204 No Content\r\nX: y\r\n\r\n"),
		same("HTTP/1.1 304 Not Modified\r\nContent-Type: text/x\r\nContent-Length: 55\r\n\r\n"),
		same("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 103 \r\n\r\n" + ok + empty),
		same(ok + "Content-Length: 5\r\n\r\nhello"),
		same(ok + "Content-Length: 100000\r\n\r\n" + strings.Repeat("0123456789", 10000)),
		same(ok + "Transfer-Encoding: chunked\r\n\r\n5;x\r\nhello\r\n0\r\n\r\n"),
		same(ok + "Transfer-Encoding: chunked\r\nTrailer: X\r\n\r\n1\r\nx\r\n0\r\nx: y\r\nX: z\r\n\r\n"),
		same(ok + "Transfer-Encoding: chunked\r\n\r\n186a0\r\n" + strings.Repeat("0123456789", 10000) + "\r\n2\r\nxx\r\n0\r\n\r\n"),
		response(ok+"Transfer-Encoding: chunked\r\n\r\n0\r\nTransfer-Encoding: gzip\r\nX: y\r\n\r\n", ok+"Transfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\n\r\n"),
		response("HTTP/1.1 200 OK\nContent-Length : 2\nX: a\n b\n\nhi", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX: a  b\r\n\r\nhi"),
		response("HTTP/1.1 200\r\n"+empty, "HTTP/1.1 200 \r\n"+empty),
		response(ok+"Connection: close, X\r\nX: y\r\nKeep-Alive: 5\r\nProxy-Authenticate: Basic\r\nUpgrade: h2c\r\n"+empty, ok+empty),
		response("HTTP/1.0 200 OK\r\n"+empty, ok+empty),
		response("HTTP/1.1 426 Upgrade Required\r\nConnection: upgrade\r\nUpgrade: TLS/1.3\r\n"+empty,
			"HTTP/1.1 426 Upgrade Required\r\nUpgrade: TLS/1.3\r\nContent-Length: 0\r\nConnection: Upgrade\r\n\r\n"),
		func(m *message) {
			response("HTTP/1.0 200 OK\r\nX: y\r\n\r\nto the end", ok+"X: y\r\nConnection: close\r\n\r\nto the end")(m)
			m.originCloses = true
		},
		func(m *message) {
			response(ok+"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", ok+"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n")(m)
			request("HEAD http://a.example/", "HEAD /", "", "")(m)
			m.fresh = false
		},
		func(m *message) { // HTTP/1.0 knows no chunks
			m.request = "GET http://a.example/ HTTP/1.0\r\nHost: a.example\r\n\r\n"
			response(ok+"Trailer: X\r\nTransfer-Encoding: chunked\r\n\r\n5;x\r\nhello\r\n1\r\n!\r\n0\r\nX: y\r\n\r\n", ok+"Connection: close\r\n\r\nhello!")(m)
		},
		func(m *message) { // and no interim responses
			m.request = "GET http://a.example/ HTTP/1.0\r\nHost: a.example\r\n\r\n"
			response("HTTP/1.1 103 Early Hints\r\n\r\n"+ok+empty, ok+"Content-Length: 0\r\nConnection: close\r\n\r\n")(m)
		},
	} {
		m := message{request: get + host + "\r\n", atOrigin: "GET / HTTP/1.1\r\n" + host + "\r\n", response: ok + empty, atClient: ok + empty}
		change(&m)
		messages = append(messages, m)
	}
	t.Run("whole", func(t *testing.T) { exchangeAll(t, messages, whole) })
	t.Run("in pieces", func(t *testing.T) {
		exchangeAll(t, messages, func(s string) (pieces []string) {
			for len(s) > 0 {
				n := min(len(s), max(7, len(s)/10))
				pieces, s = append(pieces, s[:n]), s[n:]
			}
			return pieces
		})
	})
}

// A writer of valid messages, at random.
type messageWriter struct{ *rand.Rand }

func (w messageWriter) chance(n int) bool { return w.IntN(n) == 0 }

func (w messageWriter) from(chars string, most int) string {
	b := make([]byte, w.IntN(most+1))
	for i := range b {
		b[i] = chars[w.IntN(len(chars))]
	}
	return string(b)
}

const (
	tokenChars  = "abcXYZ019!#$%&'*+-.^_`|~"
	targetChars = "abcXYZ019-._~%/:?@!$&'()*+,;={}\"^|`<>\\\xc3\xa9\xff"
	valueChars  = "abcXYZ019 \t,;:=\"()<>\\\x01\x7f\x80\xc3\xa9\xff"
)

// fields returns fields, and what of them is passed on.
func (w messageWriter) fields() (in, out string) {
	add := func(name, value string, pass bool) {
		line := name + ":" + value + "\r\n"
		if in += line; pass {
			out += line
		}
	}
	for range w.IntN(12) {
		switch w.IntN(8) {
		case 0:
			add("X-Hop"+w.from("ab", 1), " "+w.from(valueChars, 20), false)
		case 1:
			add([]string{"Keep-Alive", "proxy-connection", "Proxy-Authorization", "TE", "Upgrade"}[w.IntN(5)], " x"+w.from(valueChars, 10), false)
		default:
			add("x-"+w.from(tokenChars, 12), w.from(" \t", 2)+w.from(valueChars, 40), true)
		}
	}
	add([]string{"Connection", "connection", "CONNECTION"}[w.IntN(3)], " x-hop, X-HOPa,x-hopB , Keep-alive,", false)
	return in, out
}

// content returns the fields that frame some content, and the content.
func (w messageWriter) content() (fields, content string) {
	data := func() string {
		switch w.IntN(4) {
		case 0:
			return ""
		case 1:
			return strings.Repeat(w.from(valueChars+"\r\n\x00", 30), w.IntN(4000))
		}
		return w.from(valueChars+"\r\n\x00", 100)
	}
	if w.chance(2) {
		b := data()
		return fmt.Sprintf("%s: %d\r\n", []string{"Content-Length", "content-length"}[w.IntN(2)], len(b)), b
	}
	for range w.IntN(6) {
		if b := data(); b != "" {
			content += fmt.Sprintf([]string{"%x", "%X", "0%x", "%x;" + w.from(tokenChars, 10) + "=\"" + w.from("a b;\t\xff", 5) + "\""}[w.IntN(4)], len(b)) + "\r\n" + b + "\r\n"
		}
	}
	content += []string{"0", "000"}[w.IntN(2)] + "\r\n"
	for range w.IntN(3) {
		content += "t-" + w.from(tokenChars, 10) + ":" + w.from(valueChars, 20) + "\r\n"
	}
	return "Transfer-Encoding: chunked\r\n", content + "\r\n"
}

func (w messageWriter) message() (m message) {
	method := []string{"GET", "GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "x" + w.from(tokenChars, 8)}[w.IntN(8)]
	path := w.from(targetChars, 60)
	in, out := w.fields()
	var content string
	if method != "GET" && w.chance(2) {
		var framing string
		framing, content = w.content()
		in, out = framing+in, framing+out
	}
	m.request = strings.Repeat("\r\n", w.IntN(2)) + method + " http://a.example/" + path + " HTTP/1.1\r\nHost: a.example\r\n" + in + "\r\n" + content
	m.atOrigin = method + " /" + path + " HTTP/1.1\r\nHost: a.example\r\n" + out + "\r\n" + content
	m.fresh = method != "GET" && method != "HEAD" && method != "OPTIONS" && method != "PUT"

	for range w.IntN(3) {
		in, out := w.fields()
		interim := fmt.Sprintf("HTTP/1.1 1%02d %s\r\n", 2+w.IntN(98), w.from(valueChars, 10))
		m.response += interim + in + "\r\n"
		m.atClient += interim + out + "\r\n"
	}
	line := fmt.Sprintf("HTTP/1.1 %d %s\r\n", 200+w.IntN(800), w.from(valueChars, 20))
	in, out = w.fields()
	framing, content := w.content()
	if status := line[9:12]; method == "HEAD" || status == "304" {
		content = ""
	} else if status == "204" {
		framing, content = "", ""
	}
	if status := line[9:12]; status == "426" { // it has fields of its own
		line = strings.Replace(line, status, "427", 1)
	}
	m.response += line + framing + in + "\r\n" + content
	m.atClient += line + framing + out + "\r\n" + content
	return m
}

// Hundreds of valid messages, whatever is in them, arrive as they were sent, minus what is
// for one connection only.
func TestExactAtRandom(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			w := messageWriter{rand.New(rand.NewPCG(seed, 10))}
			messages := make([]message, 150)
			for i := range messages {
				messages[i] = w.message()
			}
			exchangeAll(t, messages, func(s string) (pieces []string) {
				if w.chance(2) {
					return whole(s)
				}
				for len(s) > 0 {
					n := min(len(s), 1+w.IntN(len(s)))
					pieces, s = append(pieces, s[:n]), s[n:]
				}
				return pieces
			})
		})
	}
}

// FuzzExact is TestExactAtRandom for one message.
func FuzzExact(f *testing.F) {
	f.Add(uint64(1))
	f.Fuzz(func(t *testing.T, seed uint64) {
		w := messageWriter{rand.New(rand.NewPCG(seed, 11))}
		exchangeAll(t, []message{w.message(), w.message()}, whole)
	})
}

// What one reader could take for one request and another reader for another is refused,
// and nothing of it reaches the origin.
func TestAmbiguousRequests(t *testing.T) {
	const post = "POST http://a.example/ HTTP/1.1\r\nHost: a.example\r\n"
	const smuggled = "GET http://a.example/admin HTTP/1.1\r\nHost: a.example\r\n\r\n"
	chunked := func(coding string) string { return post + "Transfer-Encoding: chunked\r\n\r\n" + coding }
	for _, tt := range []struct {
		name, send string
		want       answer.Reason
	}{
		{name: "both lengths", send: post + "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG"},
		{name: "both lengths, the other way", send: post + "Transfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\nG"},
		{name: "both lengths, one named by Connection", send: post + "Connection: Content-Length\r\nTransfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\nG"},
		{name: "two lengths", send: post + "Content-Length: 0\r\nContent-Length: 57\r\n\r\n" + smuggled},
		{name: "two lengths in one field", send: post + "Content-Length: 0, 57\r\n\r\n" + smuggled},
		{name: "a length with a sign", send: post + "Content-Length: +57\r\n\r\n" + smuggled},
		{name: "a length with a space", send: post + "Content-Length: 5 7\r\n\r\n" + smuggled},
		{name: "a length that is too large", send: post + "Content-Length: 18446744073709551616\r\n\r\n"},
		{name: "bare CR in a value", send: post + "X: a\rTransfer-Encoding: chunked\r\n\r\n" + smuggled},
		{name: "bare CR in the request line", send: "GET http://a.example/\rx HTTP/1.1\r\nHost: a.example\r\n\r\n"},
		{name: "bare CR before the end", send: post + "X: a\r\r\n\r\n"},
		{name: "obs-fold", send: post + "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n"},
		{name: "obs-fold of a length", send: post + "Content-Length: 5\r\n 7\r\n\r\n" + smuggled},
		{name: "space before the colon", send: post + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n"},
		{name: "space before the first field", send: "POST http://a.example/ HTTP/1.1\r\n Host: a.example\r\n\r\n"},
		{name: "NUL in a name", send: post + "Transfer\x00-Encoding: chunked\r\n\r\n0\r\n\r\n"},
		{name: "NUL in a value", send: post + "Transfer-Encoding: chunked\x00\r\n\r\n0\r\n\r\n"},
		{name: "NUL in the target", send: "GET http://a.example/\x00 HTTP/1.1\r\nHost: a.example\r\n\r\n"},
		{name: "xchunked", send: post + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"},
		{name: "chunked, identity", send: post + "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"},
		{name: "identity, chunked", send: post + "Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n", want: answer.Coding},
		{name: "gzip, chunked", send: post + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", want: answer.Coding},
		{name: "two codings", send: post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n"},
		{name: "vertical tab", send: post + "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n"},
		{name: "chunked in HTTP/1.0", send: "POST http://a.example/ HTTP/1.0\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
		{name: "no chunk size", send: chunked("\r\nabc\r\n0\r\n\r\n")},
		{name: "a chunk size that is no number", send: chunked("x\r\nabc\r\n0\r\n\r\n")},
		{name: "a chunk size with a sign", send: chunked("+3\r\nabc\r\n0\r\n\r\n")},
		{name: "a chunk size with 0x", send: chunked("0x3\r\nabc\r\n0\r\n\r\n")},
		{name: "a chunk size with a space", send: chunked("3 \r\nabc\r\n0\r\n\r\n")},
		{name: "a chunk size that is too large", send: chunked("10000000000000003\r\nabc\r\n0\r\n\r\n")},
		{name: "LF behind a chunk size", send: chunked("3\nabc\r\n0\r\n\r\n")},
		{name: "LF in an extension", send: chunked("3;\nabc\r\n0\r\n\r\n")},
		{name: "CR in an extension", send: chunked("3;\rabc\r\n0\r\n\r\n")},
		{name: "a chunk that is too long", send: chunked("3\r\nabcd\r\n0\r\n\r\n")},
		{name: "LF behind a chunk", send: chunked("3\r\nabc\n0\r\n\r\n")},
		{name: "two Host fields", send: "GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\nHost: b.example\r\n\r\n"},
		{name: "no Host field", send: "GET http://a.example/ HTTP/1.1\r\nX: y\r\n\r\n"},
		{name: "space in the target", send: "GET http://a.example/a b HTTP/1.1\r\nHost: a.example\r\n\r\n"},
		{name: "no colon", send: post + "X\r\n\r\n"},
		{name: "no name", send: post + ": x\r\n\r\n"},
		{name: "a name with a bracket", send: post + "X[]: x\r\n\r\n"},
		{name: "HTTP/0.9", send: "GET http://a.example/\r\n\r\n"},
		{name: "HTTP/1.10", send: "GET http://a.example/ HTTP/1.10\r\nHost: a.example\r\n\r\n"},
		{name: "HTTP/2.0", send: "GET http://a.example/ HTTP/2.0\r\nHost: a.example\r\n\r\n", want: answer.Version},
		{name: "many fields", send: post + strings.Repeat("X: y\r\n", 1001) + "\r\n", want: answer.TooLarge},
		{name: "a long target", send: "GET http://a.example/" + strings.Repeat("x", largeHeader) + " HTTP/1.1\r\nHost: a.example\r\n\r\n", want: answer.TooLarge},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if tt.want == answer.Success {
				tt.want = answer.Malformed
			}
			came := make(chan string, 10)
			g := start(t, HTTP, to(serve(t, func(c *net.TCPConn) {
				b, _ := io.ReadAll(c)
				came <- string(b)
			})), nil)
			got := string(exchange(t, g.addr, []byte(tt.send)))
			want := fmt.Sprintf("HTTP/1.1 %d ", tt.want.HTTP())
			if !strings.HasPrefix(got, want) || strings.Contains(got, "\nHTTP/1.1 ") ||
				!strings.Contains(got, "\r\nProxy-Status: "+tt.want.ProxyStatus()+"\r\n") || !strings.Contains(got, "\r\nConnection: close\r\n") {
				t.Errorf("got %q, want one answer of %q", got, want)
			}
			g.end(t)
			if len(came) > 0 {
				t.Errorf("the origin got %q", <-came)
			}
			if n := g.counted()["refused "+tt.want.String()]; n != 1 {
				t.Errorf("counted %v", g.counted())
			}
		})
	}
}

// A request that turns out to be malformed when some of it has been passed on is broken
// off at the origin, and refused.
func TestMalformedLater(t *testing.T) {
	for _, later := range []string{"x\r\n", "3\r\nabcd", "0\r\nX : y\r\n\r\n", "0\r\n\n", "0\r\n" + strings.Repeat("X: y\r\n", 20000)} {
		begun, ended := make(chan struct{}), make(chan error, 1)
		g := start(t, HTTP, to(serve(t, func(c *net.TCPConn) {
			c.Read(make([]byte, 1))
			close(begun)
			_, err := io.Copy(io.Discard, c)
			ended <- err
		})), nil)
		p := connect(t, g.addr)
		p.send("POST http://a.example/ HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
		<-begun
		p.Write([]byte(later)) // the answer may come before the end
		want := "HTTP/1.1 400 "
		if len(later) > 1000 {
			want = "HTTP/1.1 431 "
		}
		p.expect(want)
		p.ended()
		if err := <-ended; err == nil {
			t.Errorf("%.10q: for the origin the request has come to its end", later)
		}
	}
}

// Responses that make no sense, or that could be read in two ways, are 502.
func TestAmbiguousResponses(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\n"
	for name, response := range map[string]string{
		"nothing":                          "",
		"half a head":                      "HTTP/1.1 200 OK\r\nX: y\r\n",
		"a page":                           "<html>\n<body>\n\n",
		"a line":                           "220 mail.example ESMTP\r\n",
		"a head without a status":          "HTTP/1.1\r\n\r\n",
		"status 1":                         "HTTP/1.1 1 X\r\n\r\n",
		"HTTP/2":                           "HTTP/2 200\r\n\r\n",
		"an empty line first":              "\r\n" + ok + "\r\n",
		"both lengths":                     ok + "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"two lengths":                      ok + "Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
		"a length that is no number":       ok + "Content-Length: -1\r\n\r\n",
		"a length that is too large":       ok + "Content-Length: 99999999999999999999999\r\n\r\n",
		"chunked, gzip":                    ok + "Transfer-Encoding: chunked, gzip\r\n\r\n",
		"gzip, chunked":                    ok + "Transfer-Encoding: gzip, chunked\r\n\r\n",
		"xchunked":                         ok + "Transfer-Encoding: xchunked\r\n\r\n",
		"chunked in HTTP/1.0":              "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"bare CR":                          ok + "X: a\rContent-Length: 0\r\n\r\n",
		"NUL":                              ok + "X: a\x00\r\n\r\n",
		"no colon":                         ok + "X\r\n\r\n",
		"no name":                          ok + ": x\r\n\r\n",
		"101 that nobody asked for":        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n",
		"interim responses without an end": strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 101),
		"a head without an end":            ok + strings.Repeat("X: y\r\n", 50000),
		"many fields":                      ok + strings.Repeat("X: y\r\n", 1001) + "\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := start(t, HTTP, to(serve(t, func(c *net.TCPConn) {
				b := make([]byte, 4096)
				c.Read(b)
				io.WriteString(c, response)
			})), nil)
			p := connect(t, g.addr)
			p.send(strings.Replace(plainRequest, "\r\n\r\n", "\r\nConnection: close\r\n\r\n", 1))
			got := p.rest()
			got = strings.ReplaceAll(got, "HTTP/1.1 103 Early Hints\r\n\r\n", "")
			if !strings.HasPrefix(got, "HTTP/1.1 502 ") || !strings.Contains(got, "\r\nProxy-Status: ptgate; error=http_protocol_error\r\n") {
				t.Errorf("got %q", got)
			}
			g.end(t)
			if m := g.counted(); m["refused bad response"] != 1 || m["panicked"] != 0 {
				t.Errorf("counted %v", m)
			}
		})
	}
}

// Content that turns out to be malformed is cut off, so that the client sees it.
func TestMalformedContent(t *testing.T) {
	for _, content := range []string{"3\r\nabc\r\nx\r\n", "3\r\nabcd\r\n", "3\r\nabc\r\n0\r\nX\r\n\r\n", "3\r\nabc\r\n3\nabc\r\n0\r\n\r\n"} {
		for _, version := range []string{"1.1", "1.0"} {
			up := serve(t, func(c *net.TCPConn) {
				b := make([]byte, 4096)
				c.Read(b)
				io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"+content)
				io.Copy(io.Discard, c)
			})
			p := connect(t, start(t, HTTP, to(up), nil).addr)
			p.send("GET http://a.example/ HTTP/" + version + "\r\nHost: a.example\r\n\r\n")
			b, err := io.ReadAll(p.r)
			if strings.HasSuffix(string(b), "0\r\n\r\n") || version == "1.0" && err == nil {
				t.Errorf("%q: HTTP/%s got %q, %v", content, version, b, err)
			}
		}
	}
}

// A service that is no web server says something and waits for the client to speak its
// language. The client hears of it at once.
func TestAnotherService(t *testing.T) {
	for _, banner := range []string{"SSH-2.0-OpenSSH_9.2\r\n", "220 mail.example ESMTP\r\n", "\x00", "HTTQ"} {
		g := start(t, HTTP, to(serve(t, func(c *net.TCPConn) {
			io.WriteString(c, banner)
			io.Copy(io.Discard, c)
		})), nil)
		p := connect(t, g.addr)
		p.send(plainRequest)
		p.expect("HTTP/1.1 502 ")
		g.end(t)
		if m := g.counted(); m["refused bad response"] != 1 {
			t.Errorf("%q: counted %v", banner, m)
		}
	}
}
