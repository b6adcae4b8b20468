package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// A Problem is something wrong with a configuration file. A warning is about something
// that works, but is probably a mistake.
type Problem struct {
	File    string `json:"file"`           // as the user named it, or as the configuration file names it
	Line    int    `json:"line,omitempty"` // from 1; 0: of the file as a whole
	Message string `json:"message"`
	Warning bool   `json:"warning"`
}

// String prints FILE:LINE: message.
func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d", p.Line)
	}
	b.WriteString(": ")
	if p.Warning {
		b.WriteString("warning: ")
	}
	b.WriteString(p.Message)
	return b.String()
}

// HasError tells whether one of the problems is an error, not only a warning.
func HasError(problems []Problem) bool {
	return slices.ContainsFunc(problems, func(p Problem) bool { return !p.Warning })
}

// Sort puts the problems of the file main first, and each file's by line.
func Sort(problems []Problem, main string) {
	slices.SortStableFunc(problems, func(a, b Problem) int {
		if a.File != b.File {
			switch main {
			case a.File:
				return -1
			case b.File:
				return 1
			}
		}
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line))
	})
}

// DidYouMean is the end of a message about an unknown word: a question for the known one
// that is nearest, or nothing.
func DidYouMean(word string, known []string) string {
	best, distance := "", 3
	for _, k := range known {
		if d := editDistance(strings.ToLower(word), strings.ToLower(k)); d < distance && d < max(len(k), len(word)) {
			best, distance = k, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(": did you mean %q?", best)
}

// editDistance counts the insertions, deletions, replacements and swaps of
// neighbours that lead from a to b; words of more than 64 bytes are far apart.
func editDistance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	var rows [3][65]int
	prev, cur, old := &rows[0], &rows[1], &rows[2]
	for j := range len(b) + 1 {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			replace := prev[j-1]
			if a[i-1] != b[j-1] {
				replace++
			}
			cur[j] = min(replace, prev[j]+1, cur[j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], old[j-2]+1)
			}
		}
		old, prev, cur = prev, cur, old
	}
	return prev[len(b)]
}
