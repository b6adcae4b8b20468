package socks_test

import (
	"fmt"
	"io"
	"net"

	"ptgate/gateway/answer"
	"ptgate/gateway/socks"
	"ptgate/gateway/stream"
)

func Example() {
	app, conn := net.Pipe()
	go func() { // a SOCKS5 program
		io.WriteString(app, "\x05\x01\x00")
		io.ReadFull(app, make([]byte, 2))
		io.WriteString(app, "\x05\x01\x00\x03\x0bexample.com\x00\x50")
		io.Copy(io.Discard, app)
	}()
	s := socks.Session{Dial: func(host string, port int) (stream.Conn, error) {
		fmt.Println("asked for", host, port)
		return nil, answer.Errorf(answer.Blocked, "not today")
	}}
	s.Serve(conn)
	conn.Close()
	fmt.Println("granted:", s.Granted)
	// Output:
	// asked for example.com 80
	// granted: false
}
