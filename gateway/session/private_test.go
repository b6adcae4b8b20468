package session

import (
	"bytes"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"ptgate/gateway/carrier"
	"ptgate/gateway/stream"
)

// A brokenConn fails as a TCP connection does, with its addresses in the error.
type brokenConn struct{ net.Conn }

var errBroken = &net.OpError{
	Op: "read", Net: "tcp", Source: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 443},
	Addr: &net.TCPAddr{IP: net.IPv4(203, 0, 113, 7), Port: 50000}, Err: io.ErrNoProgress,
}

func (brokenConn) Read([]byte) (int, error)         { return 0, errBroken }
func (brokenConn) Write([]byte) (int, error)        { return 0, errBroken }
func (brokenConn) Close() error                     { return nil }
func (brokenConn) SetWriteDeadline(time.Time) error { return nil }

// Neither the log nor the error that ends a carrier tells who its client is.
func TestErrorsWithoutAddresses(t *testing.T) {
	var log bytes.Buffer
	o := ServeOptions{MaxStreams: 10, Traffic: new(carrier.Traffic),
		Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	err := new(Server).Serve(t.Context(), stream.From(brokenConn{}), o, func(*Stream) func() { return nil })
	if err == nil || !strings.Contains(log.String(), io.ErrNoProgress.Error()) {
		t.Errorf("error %v, log %s", err, &log)
	}
	if text := err.Error() + log.String(); strings.Contains(text, "192.0.2.1") || strings.Contains(text, "203.0.113.7") {
		t.Error(text)
	}
	c := carrier.Open(stream.From(brokenConn{}), options)
	<-c.Ended()
	if _, err := c.Write([]byte("x")); err == nil || strings.Contains(err.Error(), "203.0.113.7") {
		t.Errorf("write: %v", err)
	}
	c.Close()
}
