//go:build integration

package lab

import (
	"bytes"
	"cmp"
	"container/heap"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"ptgate/integration/harness"
)

// A censor is the box in the middle: every packet of every box goes through it.
// What crosses the border, that is what the client's box sends and gets, it may
// drop, delay, slow down, or answer with resets forged in both directions.
type censor struct {
	tuns map[netip.Addr]*os.File
	wg   sync.WaitGroup
	stop chan struct{}

	// Two lines across the border, each in order.
	out, in line

	mu      sync.Mutex
	client  netip.Addr                        // the address inside the border
	cut     bool                              // nothing crosses the border
	blocked map[netip.Addr]bool               // dropped silently
	ports   map[netip.AddrPort]bool           // dropped silently
	dial    map[netip.Addr]bool               // new connections to these are dropped
	names   [][]byte                          // in a TLS hello or an HTTP request: reset
	socks   bool                              // a SOCKS5 greeting: reset
	each    rules                             // for each connection
	divert  map[netip.AddrPort]netip.AddrPort // another server answers in place of one
	lie     netip.Addr                        // all names lead there, says a forged answer; zero: none is forged
	flows   map[flow]*flowState               // that cross the border
	resets  int                               // flows that were reset
	seen    []event                           // what became of connections
	pcap    *os.File                          // of what crosses; nil: none
	delay   time.Duration                     // one way
	loss    float64                           // the share of packets that are lost, in each direction
	rate    int                               // bytes a second and direction; 0: no limit
	passed  map[netip.Addr]*counter           // by the far side
}

// A counter tells of packets, of the bytes that TCP and UDP carried in them, and of
// the bytes of the whole packets.
type counter struct{ packets, bytes, wire int }

// A packet is an IPv4 packet with its TCP header taken apart.
type packet struct {
	raw      []byte
	src, dst netip.AddrPort // ports only of TCP and UDP
	proto    byte
	seq, ack uint32
	flags    byte
	payload  []byte
}

const (
	flagFIN = 1 << iota
	flagSYN
	flagRST
	flagPSH
	flagACK
)

// parse takes an IPv4 packet apart (RFC 791 section 3.1, RFC 9293 section 3.1).
func parse(raw []byte) (p packet, ok bool) {
	if len(raw) < 20 || raw[0]>>4 != 4 {
		return p, false
	}
	head := int(raw[0]&15) * 4
	size := int(binary.BigEndian.Uint16(raw[2:]))
	if head < 20 || size < head || size > len(raw) {
		return p, false
	}
	raw = raw[:size]
	p.raw, p.proto = raw, raw[9]
	src, dst := netip.AddrFrom4([4]byte(raw[12:16])), netip.AddrFrom4([4]byte(raw[16:20]))
	p.src, p.dst = netip.AddrPortFrom(src, 0), netip.AddrPortFrom(dst, 0)
	t := raw[head:]
	if (p.proto == unix.IPPROTO_TCP || p.proto == unix.IPPROTO_UDP) && len(t) >= 8 {
		p.src = netip.AddrPortFrom(src, binary.BigEndian.Uint16(t))
		p.dst = netip.AddrPortFrom(dst, binary.BigEndian.Uint16(t[2:]))
	}
	if p.proto == unix.IPPROTO_TCP {
		if len(t) < 20 || int(t[12]>>4)*4 > len(t) || t[12]>>4 < 5 {
			return p, false
		}
		p.seq, p.ack, p.flags = binary.BigEndian.Uint32(t[4:]), binary.BigEndian.Uint32(t[8:]), t[13]
		p.payload = t[int(t[12]>>4)*4:]
	}
	return p, true
}

func sum(b []byte, start uint32) uint32 {
	for ; len(b) >= 2; b = b[2:] {
		start += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		start += uint32(b[0]) << 8
	}
	return start
}

func fold(s uint32) uint16 {
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}

// forgeReset is a RST from src to dst at exactly the number that dst awaits, which
// is all that RFC 5961 section 3 lets through.
func forgeReset(src, dst netip.AddrPort, seq uint32) []byte {
	b := make([]byte, 40)
	b[0], b[3], b[8], b[9] = 0x45, 40, 64, unix.IPPROTO_TCP
	copy(b[12:], src.Addr().AsSlice())
	copy(b[16:], dst.Addr().AsSlice())
	binary.BigEndian.PutUint16(b[10:], fold(sum(b[:20], 0)))
	t := b[20:]
	binary.BigEndian.PutUint16(t, src.Port())
	binary.BigEndian.PutUint16(t[2:], dst.Port())
	binary.BigEndian.PutUint32(t[4:], seq)
	t[12], t[13] = 5<<4, flagRST
	binary.BigEndian.PutUint16(t[16:], fold(sum(t, sum(b[12:20], unix.IPPROTO_TCP+20))))
	return b
}

// between is the packet of a TCP connection with other ends.
func (p packet) between(src, dst netip.AddrPort) packet {
	b := bytes.Clone(p.raw)
	copy(b[12:], src.Addr().AsSlice())
	copy(b[16:], dst.Addr().AsSlice())
	head := int(b[0]&15) * 4
	t := b[head:]
	binary.BigEndian.PutUint16(t, src.Port())
	binary.BigEndian.PutUint16(t[2:], dst.Port())
	b[10], b[11], t[16], t[17] = 0, 0, 0, 0
	binary.BigEndian.PutUint16(b[10:], fold(sum(b[:head], 0)))
	binary.BigEndian.PutUint16(t[16:], fold(sum(t, sum(b[12:20], unix.IPPROTO_TCP+uint32(len(t))))))
	p, _ = parse(b)
	return p
}

// forgeAnswer answers a question for a name (RFC 1035 section 4) in place of the server.
func forgeAnswer(p packet, lie netip.Addr) []byte {
	var m dnsmessage.Message
	if m.Unpack(p.raw[int(p.raw[0]&15)*4+8:]) != nil || len(m.Questions) == 0 {
		return nil
	}
	q := m.Questions[0]
	m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
	if q.Type == dnsmessage.TypeA {
		m.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 60},
			Body: &dnsmessage.AResource{A: lie.As4()}}}
	}
	answer, err := m.Pack()
	if err != nil {
		return nil
	}
	b := make([]byte, 28, 28+len(answer))
	b[0], b[8], b[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(b[2:], uint16(28+len(answer)))
	copy(b[12:], p.dst.Addr().AsSlice())
	copy(b[16:], p.src.Addr().AsSlice())
	binary.BigEndian.PutUint16(b[10:], fold(sum(b[:20], 0)))
	binary.BigEndian.PutUint16(b[20:], p.dst.Port())
	binary.BigEndian.PutUint16(b[22:], p.src.Port())
	binary.BigEndian.PutUint16(b[24:], uint16(8+len(answer))) // the checksum 0 is none (RFC 768)
	return append(b, answer...)
}

// serverName finds the name in a TLS ClientHello (RFC 8446 section 4.1.2, RFC 6066
// section 3), as far as the first segment has it.
func serverName(b []byte) []byte {
	skip := func(n int) bool {
		if n > len(b) {
			return false
		}
		b = b[n:]
		return true
	}
	vector := func(width int) bool { // skips a vector with a length of width bytes
		if len(b) < width {
			return false
		}
		n := 0
		for _, x := range b[:width] {
			n = n<<8 | int(x)
		}
		return skip(width + n)
	}
	if len(b) < 6 || b[0] != 22 || b[5] != 1 {
		return nil
	}
	if !skip(5+4+2+32) || !vector(1) || !vector(2) || !vector(1) || !skip(2) {
		return nil
	}
	for len(b) >= 4 {
		kind, n := int(b[0])<<8|int(b[1]), int(b[2])<<8|int(b[3])
		if !skip(4) || n > len(b) {
			return nil
		}
		if kind == 0 && n > 5 {
			return b[5:n]
		}
		skip(n)
	}
	return nil
}

// forbidden looks into what a client sends.
func (c *censor) forbidden(first bool, payload []byte) bool {
	if c.socks && first && len(payload) >= 3 && payload[0] == 5 && len(payload) >= 2+int(payload[1]) && payload[1] > 0 {
		return true
	}
	name := serverName(payload)
	_, host, _ := bytes.Cut(payload, []byte("\r\nHost: "))
	host, _, _ = bytes.Cut(host, []byte("\r\n"))
	for _, bad := range c.names {
		if bytes.Equal(name, bad) || bytes.Equal(host, bad) {
			return true
		}
	}
	return false
}

// newCensor takes one end of each box's only link.
func newCensor(t testing.TB, boxes ...*box) *censor {
	c := &censor{tuns: map[netip.Addr]*os.File{}, stop: make(chan struct{}),
		client: clientAddr, blocked: map[netip.Addr]bool{}, ports: map[netip.AddrPort]bool{}, dial: map[netip.Addr]bool{}, divert: map[netip.AddrPort]netip.AddrPort{},
		flows: map[flow]*flowState{}, passed: map[netip.Addr]*counter{}}
	for _, b := range boxes {
		c.tuns[b.addr] = openTUN(t, b)
		c.passed[b.addr] = new(counter)
	}
	c.out.init(c)
	c.in.init(c)
	var files []*os.File
	for _, f := range c.tuns {
		files = append(files, f)
		c.wg.Go(func() { c.read(f) })
	}
	c.wg.Go(c.watch)
	t.Cleanup(func() {
		close(c.stop)
		for _, f := range files {
			f.Close()
		}
		c.wg.Wait()
	})
	return c
}

// openTUN makes a box's network device, whose other end is the file.
func openTUN(t testing.TB, b *box) *os.File {
	t.Helper()
	var file *os.File
	err := b.within(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		var request struct {
			name  [16]byte
			flags uint16
			_     [22]byte
		}
		copy(request.name[:], "net0")
		request.flags = unix.IFF_TUN | unix.IFF_NO_PI
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TUNSETIFF, uintptr(unsafe.Pointer(&request))); errno != 0 {
			unix.Close(fd)
			return fmt.Errorf("TUNSETIFF: %w", errno)
		}
		file = os.NewFile(uintptr(fd), "tun")
		return nil
	})
	if err != nil {
		t.Fatalf("box %s: %v", b.name, err)
	}
	must(t, "ip", "-n", b.ns, "address", "add", b.addr.String()+"/24", "dev", "net0")
	must(t, "ip", "-n", b.ns, "link", "set", "net0", "txqueuelen", "1000", "up")
	must(t, "ip", "-n", b.ns, "link", "set", "lo", "up")
	return file
}

func (c *censor) read(f *os.File) {
	buf := make([]byte, 2048)
	for {
		n, err := f.Read(buf)
		if err != nil {
			return
		}
		if p, ok := parse(buf[:n]); ok {
			c.forward(p)
		}
	}
}

// write puts a packet into its receiver's box. What the box does not take is
// lost, as on any link.
func (c *censor) write(dst netip.Addr, raw []byte) {
	if f := c.tuns[dst]; f != nil {
		f.Write(raw)
	}
}

var clientAddr = netip.MustParseAddr("10.77.0.1")

// forward decides on a packet.
func (c *censor) forward(p packet) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.tuns[p.src.Addr()] == nil {
		return // an address that its box has given up
	}
	fromClient := p.src.Addr() == c.client
	if fromClient && c.lie.IsValid() && p.proto == unix.IPPROTO_UDP && p.dst.Port() == 53 {
		c.write(c.client, forgeAnswer(p, c.lie))
		return
	}
	for from, to := range c.divert {
		if fromClient && p.dst == from {
			p = p.between(p.src, to)
		} else if p.src == to && p.dst.Addr() == c.client {
			p = p.between(from, p.dst)
		}
	}
	if !fromClient && p.dst.Addr() != c.client {
		c.write(p.dst.Addr(), p.raw) // not ours to look at
		return
	}
	far, line := p.dst, &c.out
	key := flow{p.src, p.dst}
	if !fromClient {
		far, line = p.src, &c.in
		key = flow{p.dst, p.src}
	}
	if c.cut || c.blocked[far.Addr()] || c.ports[far] {
		return
	}
	if c.dial[far.Addr()] && p.flags&flagSYN != 0 {
		return
	}
	if c.pcap != nil {
		c.record(p.raw)
	}
	if n := c.passed[far.Addr()]; n != nil {
		n.packets++
		n.bytes += len(p.payload)
		n.wire += len(p.raw)
	}
	now := time.Now()
	var s *flowState
	if p.proto == unix.IPPROTO_TCP {
		if s = c.track(key, p, fromClient, now); s != nil && !c.pass(key, s, p, fromClient, now) {
			return
		}
	}
	line.put(p, s, now)
}

// resetLocked tells both sides that the other has reset the connection.
func (c *censor) resetLocked(key flow, s *flowState, kind fate) {
	c.resets++
	c.end(key, s, kind)
	c.write(key.client.Addr(), forgeReset(key.far, key.client, s.clientAck))
	c.write(key.far.Addr(), forgeReset(key.client, key.far, s.farAck))
}

// set changes the rules.
func (c *censor) set(change func(c *censor)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(c)
}

func (c *censor) block(a netip.Addr, yes bool) { c.set(func(c *censor) { c.blocked[a] = yes }) }

// resetAll resets the flows to an address.
func (c *censor) resetAll(a netip.Addr) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, s := range c.flows {
		if key.far.Addr() == a && s.fate == passes {
			c.resetLocked(key, s, wasReset)
			n++
		}
	}
	return n
}

// traffic tells what crossed the border to and from an address.
func (c *censor) traffic(a netip.Addr) counter {
	c.mu.Lock()
	defer c.mu.Unlock()
	return *c.passed[a]
}

// capture writes what crosses from now on into a file, as tshark reads it, until
// the function that it returns is called.
func (c *censor) capture(t testing.TB) (path string, stop func()) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "border.pcap")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	const linkRaw = 101 // LINKTYPE_RAW: packets begin with the IP header
	head := binary.LittleEndian.AppendUint32(nil, 0xa1b2c3d4)
	head = binary.LittleEndian.AppendUint32(head, 4<<16|2)
	for _, x := range []uint32{0, 0, 65535, linkRaw} {
		head = binary.LittleEndian.AppendUint32(head, x)
	}
	f.Write(head)
	c.set(func(c *censor) { c.pcap = f })
	return path, sync.OnceFunc(func() {
		c.set(func(c *censor) { c.pcap = nil })
		f.Close()
	})
}

func (c *censor) record(raw []byte) {
	now := time.Now()
	b := make([]byte, 0, 16+len(raw))
	for _, x := range []uint32{uint32(now.Unix()), uint32(now.Nanosecond() / 1000), uint32(len(raw)), uint32(len(raw))} {
		b = binary.LittleEndian.AppendUint32(b, x)
	}
	c.pcap.Write(append(b, raw...))
}

// A line is one direction across the border: packets leave it after the delay, no
// faster than the rate, and those of one connection in order.
type line struct {
	c    *censor
	wake chan struct{}

	mu    sync.Mutex
	queue departures
	count uint64
	free  time.Time // when the last packet has gone, by the rate of the whole line
}

// A pace is one direction of one connection.
type pace struct {
	free time.Time // when the last packet has gone, by the rate of the connection
	last time.Time // when the last packet arrives
}

type queued struct {
	dst   *os.File
	raw   []byte
	at    time.Time
	count uint64 // among those of one moment the first comes first
}

// departures is a heap of packets by when they arrive.
type departures []queued

func (d departures) Len() int      { return len(d) }
func (d departures) Swap(i, j int) { d[i], d[j] = d[j], d[i] }
func (d departures) Less(i, j int) bool {
	return cmp.Or(d[i].at.Compare(d[j].at), cmp.Compare(d[i].count, d[j].count)) < 0
}
func (d *departures) Push(x any) { *d = append(*d, x.(queued)) }
func (d *departures) Pop() any {
	last := (*d)[len(*d)-1]
	*d = (*d)[:len(*d)-1]
	return last
}

const (
	lineRoom = 1000                   // packets
	flowRoom = 500 * time.Millisecond // of a connection's own rate
)

func (l *line) init(c *censor) {
	l.c, l.wake = c, make(chan struct{}, 1)
	c.wg.Go(l.run)
}

// put sends a packet on its way. s is its connection, or nil.
func (l *line) put(p packet, s *flowState, now time.Time) {
	dst := l.c.tuns[p.dst.Addr()]
	if dst == nil || l.c.loss > 0 && rand.Float64() < l.c.loss {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	at := now
	if rate := l.c.rate; rate > 0 {
		l.free = latest(l.free, now).Add(time.Duration(len(p.raw)) * time.Second / time.Duration(rate))
		at = l.free
	}
	if s != nil {
		pace := &s.out
		if l == &l.c.in {
			pace = &s.in
		}
		if rate := l.c.each.rate; rate > 0 {
			if pace.free.Sub(now) > flowRoom {
				return
			}
			pace.free = latest(pace.free, now).Add(time.Duration(len(p.raw)) * time.Second / time.Duration(rate))
			at = latest(at, pace.free)
		}
		at = latest(at.Add(l.c.delay), pace.last)
		pace.last = at
	} else {
		at = at.Add(l.c.delay)
	}
	if !at.After(now) && len(l.queue) == 0 {
		dst.Write(p.raw)
		return
	}
	if len(l.queue) >= lineRoom {
		return
	}
	l.count++
	heap.Push(&l.queue, queued{dst, bytes.Clone(p.raw), at, l.count})
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func latest(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

func (l *line) run() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		l.mu.Lock()
		wait := time.Hour
		if len(l.queue) > 0 {
			wait = time.Until(l.queue[0].at)
		}
		if wait <= 0 {
			q := l.queue[0]
			q.dst.Write(q.raw) // before it leaves the queue: nothing overtakes it
			heap.Pop(&l.queue)
			l.mu.Unlock()
			continue
		}
		l.mu.Unlock()
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-l.wake:
		case <-l.c.stop:
			return
		}
	}
}

// packets reads a capture back.
func packets(t testing.TB, path string) (all []packet) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	r := bytes.NewReader(b[24:])
	for {
		var head [16]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return all
		}
		raw := make([]byte, binary.LittleEndian.Uint32(head[8:]))
		if _, err := io.ReadFull(r, raw); err != nil {
			t.Fatal(err)
		}
		if p, ok := parse(raw); ok {
			all = append(all, p)
		}
	}
}

// within runs f with the box's network namespace around it: sockets that f makes
// in its own goroutine belong there.
func (b *box) within(f func() error) error { return harness.Within(b.ns, f) }
