// Command bench measures ptgate against a bare pair of PT processes on loopback:
// the same work through each system in turn, in interleaved rounds, so that a
// machine whose speed drifts treats all alike. Only ratios within one run mean
// anything.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"slices"
	"strings"
	"time"

	"ptgate/integration/realpt"
)

var (
	ptgate = flag.String("ptgate", "", "the ptgate `program`")
	dir    = flag.String("dir", "", "a `directory` for state and binaries")
	pt     = flag.String("pt", "", "the bare pair's obfs4 `program` (default: lyrebird, built from its module)")
	rounds = flag.Int("rounds", 5, "interleaved rounds")
	dur    = flag.Duration("dur", 700*time.Millisecond, "measured time of one bulk or rate run")
	only   = flag.String("only", "", "comma-separated `systems`; default: all")
	serve  = flag.Bool("serve-origin", false, "be the origin alone, until standard input ends")
	web    = flag.Bool("http", false, "compare plain HTTP with tinyproxy and squid instead, where they are installed")
	scale  = flag.Bool("scale", false, "measure memory and cost at 10 to 10,000 idle connections instead")
)

func main() {
	log.SetFlags(0)
	flag.Parse()
	if err := run(context.Background()); err != nil {
		log.Fatal("bench: ", err)
	}
}

func run(ctx context.Context) error {
	if *serve {
		o, err := startOrigin()
		if err != nil {
			return err
		}
		fmt.Println(o.addr)
		io.Copy(io.Discard, os.Stdin)
		return o.Close()
	}
	if *scale {
		return runScale(ctx)
	}
	if *web {
		return runHTTP(ctx)
	}
	if *pt == "" {
		path, err := realpt.BuildLyrebird()
		if err != nil {
			return err
		}
		*pt = path
	}
	origin, err := startOrigin()
	if err != nil {
		return err
	}
	defer origin.Close()

	table := map[string]map[string][]float64{} // work → system → values
	for round := range *rounds {
		for _, s := range systems {
			if *only != "" && !slices.Contains(strings.Split(*only, ","), s.name) {
				continue
			}
			if err := measure(ctx, s, origin.addr, table); err != nil {
				return fmt.Errorf("%s, round %d: %w", s.name, round+1, err)
			}
		}
		log.Printf("round %d of %d", round+1, *rounds)
	}
	printTable(table)
	return nil
}

// measure starts a system, lets each kind of work run through it once, and ends
// it.
func measure(ctx context.Context, s system, origin string, table map[string]map[string][]float64) error {
	d, err := os.MkdirTemp(*dir, s.name+"-")
	if err != nil {
		return err
	}
	r, err := s.start(ctx, d, origin)
	if err != nil {
		return err
	}
	defer r.stop()
	for _, w := range works {
		v, err := w.run(r)
		if err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
		if table[w.name] == nil {
			table[w.name] = map[string][]float64{}
		}
		table[w.name][s.name] = append(table[w.name][s.name], v)
	}
	return nil
}

func printTable(table map[string]map[string][]float64) {
	var names, rows []string
	for _, s := range systems {
		for _, row := range table {
			if len(row[s.name]) > 0 {
				names = append(names, s.name)
				break
			}
		}
	}
	for _, w := range works {
		rows = append(rows, w.name)
	}
	printRows(table, names, rows)
}

// printRows prints a table: a row for each work, and a column for each name.
func printRows(table map[string]map[string][]float64, names, works []string) {
	fmt.Printf("| median (lowest to highest) | %s |\n|---|%s\n", strings.Join(names, " | "), strings.Repeat("---|", len(names)))
	for _, w := range works {
		fmt.Printf("| %s |", w)
		for _, n := range names {
			v := slices.Sorted(slices.Values(table[w][n]))
			if len(v) == 0 {
				fmt.Print(" – |")
				continue
			}
			fmt.Printf(" %s (%s to %s) |", short(v[len(v)/2]), short(v[0]), short(v[len(v)-1]))
		}
		fmt.Println()
	}
}

func short(v float64) string {
	if v < 10 {
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.0f", v)
}
