package website

import (
	"fmt"
	"net/http"
	"net/http/httptest"
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
