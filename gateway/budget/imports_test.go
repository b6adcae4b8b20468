package budget

import (
	"os/exec"
	"strings"
	"testing"
)

// The package is pure: it imports no other one of ours, and nothing that could do I/O.
func TestImports(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-f", `{{join .Imports " "}}`, ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	imports := strings.Fields(string(out))
	if len(imports) == 0 {
		t.Fatal("go list sees no imports")
	}
	for _, i := range imports {
		switch i {
		case "fmt", "math", "slices", "strconv", "sync", "time":
		default:
			t.Errorf("it imports %s", i)
		}
	}
}
