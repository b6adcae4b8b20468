package builtin

import (
	"bytes"
	"net"
	"reflect"
	"sync"
	"sync/atomic"
	"unsafe"

	"gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/lyrebird/common/probdist"
	"gitlab.torproject.org/tpo/anti-censorship/pluggable-transports/lyrebird/transports/obfs4/framing"
)

// A thin is what may be taken away from a connection of obfs4 while nothing comes. The
// library keeps three buffers and a table for each connection, 45 KiB, and most connections
// of a large server are idle most of the time. Read borrows the buffers. The table has the
// lengths of the padding. It follows from the keys, so that all connections of a server have
// the same.
//
// The library has no method for that. The fields are found by their names and types. If
// they are not as expected, which a test tells, the connection stays as it is.
type thin struct {
	read              *[]byte
	received, decoded **bytes.Buffer
	lengths           **probdist.WeightedDist

	lent *lent // nil: the connection has no buffers
}

// A lent is the buffers of a connection that reads.
type lent struct {
	read              []byte // from the network
	received, decoded *bytes.Buffer
}

// obfs4Read is how much obfs4 reads at a time.
const obfs4Read = 16 * framing.MaximumSegmentLength

var lents = sync.Pool{New: func() any {
	return &lent{make([]byte, obfs4Read), new(bytes.Buffer), new(bytes.Buffer)}
}}

// newThin is for a connection whose handshake is done. Nil: nothing can be taken away.
func newThin(c net.Conn) *thin {
	v := reflect.ValueOf(c)
	if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct {
		return nil
	}
	v = v.Elem()
	t := &thin{
		read:     field[[]byte](v, "readBuffer"),
		received: field[*bytes.Buffer](v, "receiveBuffer"),
		decoded:  field[*bytes.Buffer](v, "receiveDecodedBuffer"),
		lengths:  field[*probdist.WeightedDist](v, "lenDist"),
	}
	if t.read == nil || t.received == nil || t.decoded == nil || t.lengths == nil {
		return nil
	}
	t.lent = &lent{*t.read, *t.received, *t.decoded}
	t.giveBack()
	return t
}

// field is the address of a field of a struct; nil: there is none of that type.
func field[T any](v reflect.Value, name string) *T {
	f := v.FieldByName(name)
	if !f.IsValid() || f.Type() != reflect.TypeFor[T]() {
		return nil
	}
	return (*T)(unsafe.Pointer(f.UnsafeAddr()))
}

// lengths is the table that the connections of a server share; nil: there was none yet.
type lengths = atomic.Pointer[probdist.WeightedDist]

// share lets the connection share the table of the server's first one. It is called before
// the connection is used.
func (t *thin) share(first *lengths) {
	if !first.CompareAndSwap(nil, *t.lengths) {
		*t.lengths = first.Load()
	}
}

// borrow gives the connection what it needs to read. The reader calls it.
func (t *thin) borrow() {
	if t.lent == nil {
		t.lent = lents.Get().(*lent)
		*t.read, *t.received, *t.decoded = t.lent.read, t.lent.received, t.lent.decoded
	}
}

// full tells whether bytes have been decoded that were not read yet. The reader calls it.
func (t *thin) full() bool { return t.lent != nil && t.lent.decoded.Len() > 0 }

// giveBack takes the buffers away if nothing is in them. The reader calls it after a read.
func (t *thin) giveBack() {
	l := t.lent
	if l.received.Len() > 0 || l.decoded.Len() > 0 {
		return
	}
	t.lent, *t.read, *t.received, *t.decoded = nil, nil, nil, nil
	l.received.Reset()
	l.decoded.Reset()
	lents.Put(l)
}
