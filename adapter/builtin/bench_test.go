package builtin

import (
	"fmt"
	"io"
	"sync"
	"testing"
)

// BenchmarkThroughput sends one way through both ends in this process, in writes
// of several sizes; bytes/read is what one Read of 64 KiB gave.
func BenchmarkThroughput(b *testing.B) {
	for _, transport := range halfClosing {
		for _, kib := range []int{2, 4, 8, 16, 32, 64, 128} {
			b.Run(fmt.Sprintf("%s/%dKiB", transport, kib), func(b *testing.B) {
				client, server := pair(b, transport)
				buf := make([]byte, kib<<10)
				b.SetBytes(int64(len(buf)))
				b.ReportAllocs()
				var wg sync.WaitGroup
				var reads, bytes int
				b.ResetTimer()
				wg.Go(func() {
					in := make([]byte, 64<<10)
					for {
						n, err := server.Read(in)
						reads++
						bytes += n
						if err == io.EOF {
							return
						}
						if err != nil {
							b.Error(err)
							return
						}
					}
				})
				for range b.N {
					// Beneath our own chunking.
					if _, err := client.(*conn).inner.Write(buf); err != nil {
						b.Fatal(err)
					}
				}
				if err := client.CloseWrite(); err != nil {
					b.Fatal(err)
				}
				wg.Wait()
				b.ReportMetric(float64(bytes)/float64(reads), "bytes/read")
			})
		}
	}
}

// BenchmarkHandshakes dials and closes, both ends in this process.
func BenchmarkHandshakes(b *testing.B) {
	for _, transport := range halfClosing {
		b.Run(transport, func(b *testing.B) {
			l := serverFor(b, transport, nil)
			c := clientFor(b, transport, nil)
			addr, args := bridge(l)
			var wg sync.WaitGroup
			wg.Go(func() {
				for range b.N {
					s, err := l.Accept()
					if err != nil {
						b.Error(err)
						return
					}
					_ = s.Close()
				}
			})
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					s, err := c.Dial(b.Context(), addr, args)
					if err != nil {
						b.Error(err)
						return
					}
					_ = s.Close()
				}
			})
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "handshakes/s")
		})
	}
}
