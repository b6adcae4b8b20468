package session

import (
	"io"
	"testing"
)

// Streams whose programs have stopped to read do not hold up those that begin later.
func TestUnreadStreams(t *testing.T) {
	f := pair(t, testSettings, answers(0, func(s *Stream) {
		p := make([]byte, 32<<10)
		for {
			if _, err := s.Write(p); err != nil {
				return
			}
		}
	}))
	for i := range 200 {
		s := f.open()
		defer s.Close()
		if _, err := io.CopyN(io.Discard, s, 2<<20); err != nil {
			t.Fatalf("stream %d: %v, %d bytes of memory are used here, %d there", i, err, f.client.memory.Used(), f.box.memory.Used())
		}
	}
	for _, m := range []*Memory{f.client.memory, f.box.memory} {
		if n := m.Used(); n > DefaultMemory {
			t.Errorf("%d bytes of memory are used", n)
		}
	}
}
