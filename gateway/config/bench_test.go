package config

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
)

// writeNets writes n addresses and networks, a comment before each: the most that
// places cost.
func writeNets(tb testing.TB, path string, n int) {
	tb.Helper()
	writeLines(tb, path, n, func(w io.Writer, i int) {
		bits := []int{32, 32, 24, 16}[i%4]
		a := netip.AddrFrom4([4]byte{byte(i >> 18), byte(i >> 10), byte(i >> 2), byte(i)})
		fmt.Fprintf(w, "# %d\n%s\n", i, netip.PrefixFrom(a, bits).Masked())
	})
}

// writeList writes n patterns as a list of domains has them.
func writeList(tb testing.TB, path string, n int) {
	tb.Helper()
	r := rand.New(rand.NewPCG(1, 2))
	writeLines(tb, path, n, func(w io.Writer, i int) {
		if i == 0 {
			fmt.Fprintln(w, "# a list of domains")
		}
		name := strconv.FormatUint(r.Uint64(), 36)
		fmt.Fprintf(w, "%s%s.%s\n", []string{"", ".", "*.", "www."}[i%4], name, []string{"com", "net", "org"}[i%3])
	})
}

func writeLines(tb testing.TB, path string, n int, line func(w io.Writer, i int)) {
	tb.Helper()
	f, err := os.Create(path)
	if err != nil {
		tb.Fatal(err)
	}
	w := bufio.NewWriter(f)
	for i := range n {
		line(w, i)
	}
	if err := w.Flush(); err != nil {
		tb.Fatal(err)
	}
	if err := f.Close(); err != nil {
		tb.Fatal(err)
	}
}

// peakRSS is the largest resident size that this process has had, in MiB.
func peakRSS(tb testing.TB) float64 {
	tb.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		tb.Fatal(err)
	}
	_, after, ok := strings.Cut(string(status), "VmHWM:")
	if !ok {
		tb.Fatal("no VmHWM in /proc/self/status")
	}
	kib, err := strconv.Atoi(strings.Fields(after)[0])
	if err != nil {
		tb.Fatal(err)
	}
	return float64(kib) / 1024
}

// Run one of them at a time and with -benchtime 1x for the peak of one load.
func BenchmarkLoadMillion(b *testing.B) {
	for _, c := range []struct {
		what  string
		write func(testing.TB, string, int)
	}{{"names", writeList}, {"nets", writeNets}} {
		b.Run(c.what, func(b *testing.B) {
			const n = 1_000_000
			dir := b.TempDir()
			c.write(b, filepath.Join(dir, "list.txt"), n)
			file := filepath.Join(dir, "ptgate.toml")
			if err := os.WriteFile(file, []byte("[[route]]\nto_file = \"list.txt\"\nvia = \"block\"\n"), 0o600); err != nil {
				b.Fatal(err)
			}
			runtime.GC()
			for b.Loop() {
				cfg, problems := testLoader.Load(file)
				if len(problems) > 0 || cfg.Table.Len() != n {
					b.Fatal(problems)
				}
			}
			b.ReportMetric(peakRSS(b), "MiB-peak")
		})
	}
}
