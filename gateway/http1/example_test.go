package http1_test

import (
	"fmt"
	"strings"

	"ptgate/gateway/http1"
)

// A proxy reads a request and writes it again for the origin.
func Example() {
	r := http1.Reader{Src: strings.NewReader("GET http://a.example/100% HTTP/1.1\r\nhost: a.example\r\n" +
		"X-ODD:  as it came\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\n\r\n")}
	b, err := r.ReadHead(64<<10, true)
	if err != nil {
		fmt.Println(err)
		return
	}
	var h http1.Head
	if err := h.ParseRequest(b); err != nil {
		fmt.Println(err)
		return
	}
	body, err := h.RequestBody()
	h.EndToEnd(false)
	fmt.Printf("%s %s, content %v, error %v\n%s", h.Method, h.Target, body.Framing != http1.None, err,
		strings.ReplaceAll(string(h.AppendFields(nil)), "\r\n", "\n"))
	// Output:
	// GET http://a.example/100%, content false, error <nil>
	// host: a.example
	// X-ODD:  as it came
}
