package website

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
)

// Requests under way are counted for each network: whoever has one address of IPv6 has many.
func TestNetworkRequests(t *testing.T) {
	s := &Site{requests: places{most: maxRequests, mostOf: maxNetworkRequests}}
	inside, leave := make(chan bool), make(chan bool)
	h := s.only(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		inside <- true
		<-leave
	}))
	visit := func(from string) (refused bool) {
		defer func() { refused = recover() == http.ErrAbortHandler }()
		r := httptest.NewRequest("GET", "/", nil)
		r.RemoteAddr = from
		h.ServeHTTP(httptest.NewRecorder(), r)
		return false
	}
	ended := make(chan bool)
	enter := func(from string) {
		go func() { ended <- visit(from) }()
		<-inside
	}
	for i := range maxNetworkRequests {
		enter(fmt.Sprintf("[2001:db8:1:2:%x::1]:%d", i, 1000+i))
	}
	if !visit("[2001:db8:1:2:ffff::1]:1") {
		t.Error("one more of the same network was let in")
	}
	enter("[2001:db8:1:3::1]:1")
	enter("192.0.2.1:1")
	close(leave)
	for range maxNetworkRequests + 2 {
		if <-ended {
			t.Error("one that was inside was refused")
		}
	}
}

// The port without TLS leads to the host that was asked for, also if that is an address of
// IPv6.
func TestToTLS(t *testing.T) {
	for _, tt := range []struct{ host, target, want string }{
		{"www.example.com", "/a?b=c", "https://www.example.com/a?b=c"},
		{"www.example.com:80", "/", "https://www.example.com/"},
		{"[2001:db8::1]", "/", "https://[2001:db8::1]/"},
		{"[2001:db8::1]:80", "/", "https://[2001:db8::1]/"},
		{"192.0.2.1:", "/", "https://192.0.2.1/"},
		{"", "/", ""},
	} {
		r := httptest.NewRequest("GET", tt.target, nil)
		r.Host = tt.host
		w := httptest.NewRecorder()
		toTLS(w, r)
		if got := w.Header().Get("Location"); got != tt.want {
			t.Errorf("%s%s leads to %q, want %q", tt.host, tt.target, got, tt.want)
		}
	}
}

// Of a long head, only that is left out which can't say what body follows. Where somebody
// else might read another body, nobody knows where the next request begins.
func TestWatchLong(t *testing.T) {
	long := strings.Repeat("A: "+strings.Repeat("x", 6000)+"\r\n", 5)
	const begin, next = "POST / HTTP/1.1\r\nHost: h\r\n", "GET /next HTTP/1.1\r\nHost: h\r\n\r\n"
	for _, tt := range []struct {
		name, head, body string
		lost             bool
	}{
		{"no body", long + "\r\n", "", false},
		{"length", "Content-Length: 3\r\n" + long + "\r\n", "abc", false},
		{"length behind", long + "content-length: 3\r\n" + long + "\r\n", "abc", false},
		{"one line", "A: " + strings.Repeat("x", 90_000) + "\r\nContent-Length: 3\r\n\r\n", "abc", false},
		{"two lengths", "Content-Length: 3\r\n" + long + "Content-Length: 4\r\n\r\n", "", true},
		{"folded", "Content-Length: 3\r\n" + long + " 0\r\n" + long + "\r\n", "", true},
		{"folded length", "Content-Length: 3\r\n 0\r\n" + long + "\r\n", "", true},
		{"other ends of lines", "A: b\nContent-Length: 3\r\n" + long + "\r\n", "", true},
		{"a space in a name", "Content-Length : 3\r\n" + long + "\r\n", "", true},
		{"no colon", "Content-Length 3\r\n" + long + "\r\n", "", true},
		{"many lengths", strings.Repeat("Content-Length: 3\r\n", 2000) + "\r\n", "", true},
	} {
		for _, size := range []int{1, 7, 4096, 8192} {
			var w watch
			for p := range slices.Chunk([]byte(begin+tt.head+tt.body), size) {
				if r, _ := w.see(p); r != nil {
					t.Errorf("%s, %d at a time: a request", tt.name, size)
				}
				if len(w.head) > maxTunnelHead {
					t.Fatalf("%s, %d at a time: %d bytes are kept", tt.name, size, len(w.head))
				}
			}
			if w.lost != tt.lost {
				t.Errorf("%s, %d at a time: lost: %v", tt.name, size, w.lost)
			}
			if r, _ := w.see([]byte(next)); (r == nil) != tt.lost {
				t.Errorf("%s, %d at a time: the next request: %v", tt.name, size, r)
			}
		}
	}
	var w watch
	for p := range slices.Chunk([]byte("GET /"+strings.Repeat("x", 90_000)), 8192) {
		w.see(p)
	}
	if !w.lost || w.head != nil {
		t.Errorf("%d bytes are kept of a path", len(w.head))
	}
}
