package http1

import (
	"io"
	"testing"
)

// A reader that has got nothing keeps no buffer: its connection may be at its end, and
// nobody would give the buffer back.
func TestNothingReadNoBuffer(t *testing.T) {
	for _, end := range []error{io.EOF, io.ErrClosedPipe, nil} {
		r := Reader{ReadReady: func(get func() []byte, drop func()) (int, error) {
			get()
			return 0, end
		}}
		if err := r.Fill(); err == nil || r.buf != nil || r.pooled != nil {
			t.Errorf("%v: %v, with a buffer of %d bytes", end, err, len(r.buf))
		}
	}
}
