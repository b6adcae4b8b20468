//go:build integration

package attack

import (
	"context"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"ptgate/adapter"
	"ptgate/adapter/builtin"
	"ptgate/adapter/socks5"
	"ptgate/gateway/carrier"
)

// This file speaks the wire format of package gateway/session, but keeps to none of its
// rules by itself.

// The types of frames.
const (
	fData = 1 + iota
	fFin
	fStop
	fReset
	fWindow
	fAck
	fGone
	fLast
	fPing
	fPong
	fLeaving
	fClose
	fBudget
)

// numbers is how many numbers a frame of a type has.
var numbers = [...]int{fData: 3, fFin: 2, fStop: 2, fReset: 2, fWindow: 2, fAck: 2, fGone: 2,
	fLast: 0, fPing: 1, fPong: 1, fLeaving: 1, fClose: 1, fBudget: 1}

// frame appends a frame to b.
func frame(b []byte, kind byte, numbers ...uint64) []byte {
	b = append(b, kind)
	for _, n := range numbers {
		b = binary.AppendUvarint(b, n)
	}
	return b
}

// data appends a frame with bytes of a stream.
func data(b []byte, stream, offset uint64, p []byte) []byte {
	return append(frame(b, fData, stream, offset, uint64(len(p))), p...)
}

var loopback = netip.MustParseAddr("127.0.0.1")

// request is what a stream begins with: the SOCKS5 session that asks for a port on
// loopback.
func request(port uint16) []byte {
	b, err := socks5.Client{Command: socks5.Connect, Addr: socks5.Addr{IP: loopback, Port: port}}.Append(nil)
	if err != nil {
		panic(err)
	}
	return b
}

// A hello is what a client begins a carrier with.
type hello struct {
	session [16]byte
	secret  [16]byte
	join    bool // the session is there already
	flags   byte // more of them
	number  uint64
	budget  uint64
	resume  uint64
}

// newHello is that of a new session.
func newHello() (h hello) {
	rand.Read(h.session[:])
	rand.Read(h.secret[:])
	h.resume = 120
	return h
}

func (h hello) append(b []byte) []byte {
	body := []byte{0, 0, 0, 0, h.flags}
	proof := h.secret
	if h.join {
		proof = mac(h.secret, "gateway", h.session, h.number)
	} else {
		body[4] |= 1
	}
	body = append(append(body, h.session[:]...), proof[:]...)
	for _, n := range []uint64{h.number, h.budget, h.resume} {
		body = binary.AppendUvarint(body, n)
	}
	return packed(b, body)
}

func packed(b, body []byte) []byte {
	b = append(b, carrier.Preamble...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(body)))
	return append(b, body...)
}

func mac(secret [16]byte, role string, session [16]byte, number uint64) (sum [16]byte) {
	m := hmac.New(sha256.New, secret[:])
	m.Write([]byte("ptgate session " + role + "\x00"))
	m.Write(session[:])
	m.Write(binary.BigEndian.AppendUint64(nil, number))
	copy(sum[:], m.Sum(nil))
	return sum
}

// readHello reads a hello of either side.
func readHello(r io.Reader) ([]byte, error) {
	head := make([]byte, len(carrier.Preamble)+2)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	if string(head[:len(carrier.Preamble)]) != carrier.Preamble {
		return nil, errors.New("no preamble")
	}
	body := make([]byte, binary.BigEndian.Uint16(head[len(carrier.Preamble):]))
	_, err := io.ReadFull(r, body)
	return body, err
}

// A message is a frame that has come.
type message struct {
	kind    byte
	numbers [3]uint64
	data    []byte
}

// A reader of frames counts their bytes, as confirmations need it.
type reader struct {
	r   io.Reader
	buf []byte
	at  uint64 // the position after the last frame
}

func (r *reader) ReadByte() (byte, error) {
	for len(r.buf) == 0 {
		b := make([]byte, 32<<10)
		n, err := r.r.Read(b)
		if n == 0 && err != nil {
			return 0, err
		}
		r.buf = b[:n]
	}
	b := r.buf[0]
	r.buf = r.buf[1:]
	r.at++
	return b, nil
}

// next reads one frame.
func (r *reader) next() (m message, err error) {
	if m.kind, err = r.ReadByte(); err != nil {
		return m, err
	}
	if m.kind == 0 || int(m.kind) >= len(numbers) {
		return m, errors.New("unknown frame")
	}
	for i := range numbers[m.kind] {
		if m.numbers[i], err = binary.ReadUvarint(r); err != nil {
			return m, err
		}
	}
	if m.kind == fData {
		m.data = make([]byte, m.numbers[2])
		n := copy(m.data, r.buf)
		r.buf = r.buf[n:]
		_, err = io.ReadFull(r.r, m.data[n:])
		r.at += uint64(len(m.data))
	}
	return m, err
}

// dial opens a connection through obfs4 from an address of this machine.
func dial(t testing.TB, to bridge, from string) (net.Conn, error) {
	t.Helper()
	c, err := builtin.NewClient(builtin.ClientConfig{Transport: "obfs4", BindV4: netip.MustParseAddr(from)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return c.Dial(ctx, to.address, adapter.Args{{Key: "cert", Value: to.cert}, {Key: "iat-mode", Value: "0"}})
}

// A client is a malicious client with one carrier of one session.
type client struct {
	net.Conn
	hello hello
	in    reader
}

// attack dials the server as the attacker, and joins or begins the session of h.
func attack(t testing.TB, to bridge, h hello) *client {
	t.Helper()
	c, err := dial(t, to, attackerHost)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	x := &client{Conn: c, hello: h, in: reader{r: c}}
	if _, err := c.Write(h.append(nil)); err != nil {
		t.Fatal(err)
	}
	body, err := readHello(c)
	if err != nil {
		t.Fatal(err)
	}
	if body[4] != 0 {
		t.Fatalf("the server answers %d", body[4])
	}
	return x
}

// discard reads and forgets what comes, until the end.
func (c *client) discard() { io.Copy(io.Discard, c.Conn) }

// confirm reads what comes, and confirms it.
func (c *client) confirm(each func(message)) error {
	for told := uint64(0); ; {
		m, err := c.in.next()
		if err != nil {
			return err
		}
		if each != nil {
			each(m)
		}
		if c.in.at-told > 32<<10 || m.kind == fPing {
			told = c.in.at
			b := frame(nil, fAck, c.hello.number, told)
			if m.kind == fPing {
				b = frame(b, fPong, m.numbers[0])
			}
			if _, err := c.Write(b); err != nil {
				return err
			}
		}
	}
}

// A farEnd is a malicious far end, to which a gateway connects.
type farEnd struct {
	bridge
	ln    *builtin.Listener
	mu    sync.Mutex
	conns []net.Conn
	wg    sync.WaitGroup
}

// A farCarrier is one carrier of a gateway at a farEnd.
type farCarrier struct {
	net.Conn
	hello hello
	in    reader
}

// newFarEnd runs a far end until the test ends. serve gets each carrier after the hellos.
func newFarEnd(t testing.TB, serve func(*farCarrier)) *farEnd {
	t.Helper()
	ln, err := builtin.Listen(builtin.ServerConfig{Transport: "obfs4", StateDir: t.TempDir(), Bind: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	f := &farEnd{ln: ln, bridge: bridge{address: ln.Addr().String()}}
	for _, a := range ln.Args() {
		if a.Key == "cert" {
			f.cert = a.Value
		}
	}
	_, key, _ := ed25519.GenerateKey(nil)
	f.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			f.mu.Lock()
			f.conns = append(f.conns, c)
			f.mu.Unlock()
			f.wg.Go(func() {
				defer c.Close()
				if x, err := welcome(c, key); err == nil {
					serve(x)
				}
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		f.mu.Lock()
		for _, c := range f.conns {
			c.Close()
		}
		f.mu.Unlock()
		f.wg.Wait()
	})
	return f
}

// welcome does the hellos of a far end that takes every carrier.
func welcome(c net.Conn, key ed25519.PrivateKey) (*farCarrier, error) {
	c.SetReadDeadline(time.Now().Add(patience))
	body, err := readHello(c)
	if err != nil {
		return nil, err
	}
	c.SetReadDeadline(time.Time{})
	x := &farCarrier{Conn: c, in: reader{r: c}}
	h := &x.hello
	if len(body) < 37 {
		return nil, errors.New("a short hello")
	}
	h.flags = body[4]
	copy(h.session[:], body[5:])
	copy(h.secret[:], body[21:])
	rest := body[37:]
	for _, p := range []*uint64{&h.number, &h.budget, &h.resume} {
		v, n := binary.Uvarint(rest)
		if n <= 0 {
			return nil, errors.New("a short hello")
		}
		*p, rest = v, rest[n:]
	}
	if h.flags&1 == 0 {
		return nil, errors.New("only the first carrier of a session is welcome")
	}
	proof := sha256.Sum256(h.secret[:])
	signed := append([]byte("ptgate box\x00"), h.session[:]...)
	signed = binary.BigEndian.AppendUint64(append(signed, proof[:]...), h.number)
	sum := mac(h.secret, "box", h.session, h.number)
	reply := append([]byte{0, 0, 0, 0, 0}, sum[:]...)
	reply = binary.AppendUvarint(reply, h.resume)
	reply = append(reply, key.Public().(ed25519.PublicKey)...)
	reply = append(reply, ed25519.Sign(key, signed)...)
	_, err = c.Write(packed(nil, reply))
	return x, err
}

// granted is what an exit answers to a request.
var granted = []byte{5, 0, 5, 0, 0, 1, 0, 0, 0, 0, 0, 0}
