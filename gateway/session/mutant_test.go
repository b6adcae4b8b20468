package session

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// mutants are faults. Each one changes a line of the package. They are of the kinds that
// such code has: something is forgotten, or counted wrongly.
var mutants = []struct{ name, file, old, new string }{
	{"replay of half a frame begins one byte late", "replay.go",
		"left := uint64(at - n)", "left := uint64(at - n - 1)"},
	{"replay of half a frame has the old offset", "replay.go",
		"f.at += f.n - left", "f.at += 0"},
	{"a frame that has half arrived is not sent again", "replay.go",
		"case at <= n:", "case at <= n || begin < n:"},
	{"all of a lost lane is sent again", "replay.go",
		"case at <= n:", "case at < 0:"},
	{"a frameGone on a lost lane is not said again", "replay.go",
		"if g.on == on || g.on == nil {", "if g.on == nil {"},
	{"a frameGone without a lane is not said again", "end.go",
		"\te.sayAgain(nil)\n\te.feed(l)\n", "\te.feed(l)\n"},
	{"a frameGone counts as confirmed too early", "replay.go",
		"g.on == l && g.at <= int64(n)", "g.on == l"},
	{"a writer on a lost lane is forgotten", "replay.go",
		"\te.sayAgain(l)\n\te.unhome(l)\n", "\te.sayAgain(l)\n"},
	{"a writer that changes its lane is forgotten", "end.go",
		"if s != nil && len(s.out) > 0 && !s.queued {", "if false {"},
	{"writers at the limit are forgotten", "end.go",
		"for len(e.stalled) > 0 && e.held < e.most() {", "for len(e.stalled) > 1 && e.held < e.most() {"},
	{"nobody asks for confirmation", "end.go",
		"if !l.owes && l.held > 0 {", "if false {"},
	{"a writer is not woken", "end.go",
		"if len(s.out) == 0 {\n\t\ts.wakeWriter()", "if len(s.out) < 0 {\n\t\ts.wakeWriter()"},
	{"more is confirmed than has come", "end.go",
		"at: uint64(l.received)}.append(make", "at: uint64(l.received) + 1}.append(make"},
	{"less is taken than has come", "replay.go",
		"e.announce(l.number, uint64(l.received))", "e.announce(l.number, uint64(max(l.received, 1)-1))"},
	{"held leaks", "replay.go",
		"\te.partedOfPeer(-1)\n\te.hold(-l.held)\n", "\te.partedOfPeer(-1)\n"},
	{"a lane that is gone is still taken from", "end.go",
		"for !l.gone && e.err == nil {", "for e.err == nil {"},
	{"a budget is exceeded", "end.go",
		"n = min(n, len(s.out), maxMessage,", "n = min(n+controlRoom, len(s.out), maxMessage,"},
	{"a used up lane is kept", "end.go",
		"\t\te.used(l)\n\t\treturn false", "\t\treturn false"},
	{"a lost stream is not told without resume", "replay.go",
		"\te.control(nil, frame{kind: frameReset, id: id, at: codeReset})\n", ""},
	{"a carrier that never came may still come", "replay.go",
		"fresh, err := e.carriers.use(number)", "fresh, err := true, error(nil)"},
	{"bytes that come twice are read twice", "stream.go",
		"s.append(data[s.came-at:])", "s.append(data)"},
	{"bytes that come early are dropped", "stream.go",
		"return s.keep(at, data)", "return nil"},
	{"bytes that came early are never read", "stream.go",
		"s.parts[0].at <= s.came {", "s.parts[0].at < s.came {"},
	{"the end comes before the last bytes", "stream.go",
		"if s.came != s.end || s.recvOver {", "if s.end == never || s.recvOver {"},
	{"the end that comes before the last bytes is lost", "stream.go",
		"\ts.ready.notify()\n\ts.complete()\n\treturn nil\n", "\ts.ready.notify()\n\treturn nil\n"},
	{"a reader is not woken", "stream.go",
		"\ts.ready.notify()\n\ts.complete()\n\treturn nil\n", "\ts.complete()\n\treturn nil\n"},
	{"a blocked Write goes on after the end", "end.go",
		"for len(s.out) > 0 && !s.sendOver && s.sent < s.sendMax {", "for len(s.out) > 0 && s.sent < s.sendMax {"},
	{"a window is never given back", "stream.go",
		"s.e.promise(-promised)", "s.e.promise(0)"},
	{"memory is not given back", "stream.go",
		"s.e.use(n - s.uses)", "s.e.use(max(0, n-s.uses))"},
	{"a window that becomes smaller closes", "stream.go",
		"most := max(s.e.window, ", "most := max(0, "},
	{"a stream gets less than the window to begin with", "stream.go",
		"s.recvMax = s.read + uint64(n)\n", "s.recvMax = s.read + uint64(n)/2\n"},
	{"a writer does not hear of a larger window", "stream.go",
		"if len(s.out) > 0 {\n\t\t\t\ts.e.push(s)", "if len(s.out) < 0 {\n\t\t\t\ts.e.push(s)"},
	{"the header that comes in pieces is counted once more", "wire.go",
		"b = b[used-old:]", "used += old\n\t\t\tb = b[used-2*old:]"},
}

// The simulation finds each mutant. SIM_MUTANTS=all tries all of them, otherwise one of
// three is tried, and one of six in short mode and under the race detector.
func TestSimulationFindsFaults(t *testing.T) {
	goTool, err := exec.LookPath("go")
	if err != nil {
		t.Fatal(err)
	}
	step := 3
	if os.Getenv("SIM_MUTANTS") == "all" {
		step = 1
	} else if testing.Short() || raceEnabled {
		step = 6
	}
	t.Logf("one of %d of the %d mutants is tried", step, len(mutants))
	for i := 0; i < len(mutants); i += step {
		m := mutants[i]
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			found, err := tryMutant(t.Context(), goTool, t.TempDir(), m.file, m.old, m.new)
			if err != nil {
				t.Fatal(err)
			}
			if found == "" {
				t.Fatal("the simulation does not find it")
			}
			t.Log(found)
		})
	}
}

// tryMutant runs the simulation of the package with one change, and returns what it has
// found.
func tryMutant(ctx context.Context, goTool, dir, file, old, changed string) (string, error) {
	source, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	if n := strings.Count(string(source), old); n != 1 {
		return "", errors.New(file + " does not have this line once")
	}
	path, err := filepath.Abs(file)
	if err != nil {
		return "", err
	}
	mutant := filepath.Join(dir, file)
	if err := os.WriteFile(mutant, []byte(strings.Replace(string(source), old, changed, 1)), 0o600); err != nil {
		return "", err
	}
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{path: mutant}})
	if err != nil {
		return "", err
	}
	list := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(list, overlay, 0o600); err != nil {
		return "", err
	}
	binary := filepath.Join(dir, "mutant.test")
	if out, err := exec.CommandContext(ctx, goTool, "test", "-c", "-overlay", list, "-o", binary, ".").CombinedOutput(); err != nil {
		return "", errors.New("it does not build: " + string(out))
	}
	run := exec.CommandContext(ctx, binary, "-test.run", "^TestSimulation$", "-test.timeout", "60s")
	run.Env = append(os.Environ(), "SIM_SCHEDULES=5000", "SIM_SEED=", "SIM_TRACE=")
	out, err := run.CombinedOutput()
	var failed *exec.ExitError
	if err == nil {
		return "", nil
	} else if !errors.As(err, &failed) {
		return "", err
	}
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "SIM_SEED=") || strings.HasPrefix(line, "panic:") {
			return strings.TrimSpace(line), nil
		}
	}
	return "", errors.New("it fails in another way: " + string(out))
}
