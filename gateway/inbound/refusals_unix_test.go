//go:build unix

package inbound

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"ptgate/adapter/descriptors"
	"ptgate/gateway/stream"
)

// On a busy machine a client may have asked long before its bytes are read. It keeps its
// place until then.
func TestUnreadRefusals(t *testing.T) {
	dir, err := os.MkdirTemp("", "ptg-") // a short name: paths of sockets are limited
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	for network, address := range map[string]string{"tcp": "127.0.0.1:0", "unix": filepath.Join(dir, "s")} {
		t.Run(network, func(t *testing.T) { unreadRefusals(t, network, address) })
	}
}

func unreadRefusals(t *testing.T, network, address string) {
	ln, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	peer, err := net.Dial(network, ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	peer.Write([]byte("\x05\x01\x00"))
	asked := &client{Conn: stream.From(conn)}
	if err := asked.Conn.WaitRead(); err != nil {
		t.Fatal(err)
	}
	r := newRefusals(1)
	r.max = 1
	r.clients.PushBack(&refusal{asked.Conn, asked, time.Now().Add(-time.Minute)})
	other, far := net.Pipe()
	defer other.Close()
	defer far.Close()
	if e, wait := r.try(&client{Conn: stream.From(other)}, descriptors.Few); e != nil || wait > readSoon {
		t.Errorf("a place in %v, of a client whose request is not read yet", wait)
	}
	if _, err := io.ReadFull(asked.Conn, make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	if e, _ := r.try(&client{Conn: stream.From(other)}, descriptors.Few); e == nil {
		t.Error("no place of a client that says nothing more")
	}
}
