//go:build unix

package adapter

import (
	"net"
	"testing"
)

// BenchmarkDialTransport dials from as many goroutines as there are
// processors; the SOCKS side is in this process and answers at once.
func BenchmarkDialTransport(b *testing.B) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if _, err := takeSOCKS5(c); err == nil {
					c.Write(success)
					c.Read(make([]byte, 1))
				}
			}()
		}
	}()
	a := NewClient(ClientConfig{Config: Config{Exec: []string{"none"}}, Transports: []string{"fake"}})
	a.methods = map[string]method{"fake": {client: ClientMethod{Protocol: "socks5", Addr: l.Addr().String()}}}
	args := Args{{"cert", "ssH+9rP8dG2NLDN2XuFw63hIO/9MNNinLmxQDpVa+7kTOa9/m+tGWT1SmSYpQ9uTBGa6Hw"}, {"iat-mode", "0"}}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			c, err := a.DialTransport(b.Context(), "fake", "192.0.2.1:443", args)
			if err != nil {
				b.Error(err)
				return
			}
			c.(*Conn).tcp.SetLinger(0) // or all ports would be in TIME_WAIT soon
			c.Close()
		}
	})
}
