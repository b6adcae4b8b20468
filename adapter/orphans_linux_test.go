package adapter

import (
	"os/exec"
	"testing"
)

// TestOrphans: what has left its process group and its session, and has lost its parent,
// ends with the child that it comes from, and not with another one.
func TestOrphans(t *testing.T) {
	stop, err := AdoptOrphans()
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	t.Run("daemon", func(t *testing.T) {
		h, other := newHarness(t), newHarness(t)
		a, b := h.running("forks a daemon"), other.running("forks a daemon")
		mine, its := h.fellow(), other.fellow()
		h.end(a)
		h.gone(mine)
		// The other's and its daemon.
		if left := processes(other.tag); len(left) < 2 {
			t.Errorf("another child's daemon was ended, too: %v are left", left)
		}
		other.end(b)
		other.gone(its)
	})
	t.Run("hidden daemon", func(t *testing.T) {
		h := newHarness(t)
		a := h.running("forks a hidden daemon")
		fellow := h.fellow()
		h.end(a)
		h.gone(fellow)
	})
	t.Run("session", func(t *testing.T) {
		h := newHarness(t)
		a := h.running("forks a session")
		fellow := h.fellow()
		h.end(a)
		h.gone(fellow)
	})
	t.Run("another program", func(t *testing.T) {
		for range 50 { // whoever collects orphans would be faster now and then
			if out, err := CombinedOutput(exec.Command("sh", "-c", "echo out; echo err >&2; exit 3")); string(out) != "out\nerr\n" || err == nil || err.Error() != "exit status 3" {
				t.Fatalf("%q, %v", out, err)
			}
		}
	})
	orphans.mu.Lock()
	defer orphans.mu.Unlock()
	if left := len(orphans.children); left > 0 {
		t.Errorf("%d children that have ended are still noted", left)
	}
}
