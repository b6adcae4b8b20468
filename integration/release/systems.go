package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
)

// A target is a system that the program is built for.
type target struct {
	name     string // GOOS/GOARCH
	env      []string
	emulator string // of Debian's qemu-user-static; "": the program is not run
}

var targets = []target{
	{"linux/amd64", nil, "qemu-x86_64-static"},
	{"linux/arm64", nil, "qemu-aarch64-static"},
	{"linux/arm", []string{"GOARM=6"}, "qemu-arm-static"},
	{"linux/mipsle", []string{"GOMIPS=softfloat"}, "qemu-mipsel-static"},
	{"linux/386", nil, "qemu-i386-static"},
	{"windows/amd64", nil, ""},
	{"darwin/arm64", nil, ""},
	{"freebsd/amd64", nil, ""},
}

// native tells whether the kernel of this machine runs the target's programs by itself.
func (t target) native() bool {
	own := runtime.GOOS + "/" + runtime.GOARCH
	return t.name == own || t.name == "linux/386" && own == "linux/amd64"
}

// buildSystems builds the program for all targets, or for those that are named, and runs
// `ptgate demo --once` of each for Linux, the foreign ones in an emulator. With a directory
// it leaves the programs there, built as those of a release.
func buildSystems(args []string) error {
	flags := flag.NewFlagSet("systems", flag.ContinueOnError)
	dir := flags.String("dir", "", "leave the programs in this directory, built as for a release")
	if err := flags.Parse(args); err != nil {
		return err
	}
	chosen := targets
	if flags.NArg() > 0 {
		chosen = nil
		for _, name := range flags.Args() {
			i := slices.IndexFunc(targets, func(t target) bool { return t.name == name })
			if i < 0 {
				return fmt.Errorf("%q is not one of the systems", name)
			}
			chosen = append(chosen, targets[i])
		}
	}
	work, err := os.MkdirTemp("", "systems-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if *dir != "" {
		if work, err = filepath.Abs(*dir); err != nil {
			return err
		}
		if err := os.MkdirAll(work, 0o755); err != nil {
			return err
		}
	}
	bad := 0
	for _, t := range chosen {
		how, err := t.try(work, *dir != "")
		if err != nil {
			bad++
			how = err.Error()
		}
		fmt.Println(t.name+":", how)
	}
	if bad > 0 {
		return fmt.Errorf("%d of %d systems failed", bad, len(chosen))
	}
	return nil
}

// try builds the program for one target, and runs it if it can be.
func (t target) try(dir string, release bool) (how string, err error) {
	system, arch, _ := strings.Cut(t.name, "/")
	env := append([]string{"CGO_ENABLED=0", "GOOS=" + system, "GOARCH=" + arch}, t.env...)
	out := filepath.Join(dir, "ptgate-"+system+"-"+arch)
	if system == "windows" {
		out += ".exe"
	}
	if release {
		_, err = compile(".", out, stampedVersion(), env)
	} else {
		_, err = run(env, "go", "build", "-buildvcs=false", "-o", out, program)
	}
	if err != nil {
		return "", err
	}
	argv := []string{out, "demo", "--once"}
	switch {
	case t.native():
		how = "built, and runs"
	case t.emulator == "":
		return "built", nil
	default:
		emulator, err := exec.LookPath(t.emulator)
		if err != nil {
			return "", fmt.Errorf("%w: apt-get install qemu-user-static", err)
		}
		argv = append([]string{emulator}, argv...)
		how = "built, and runs in " + t.emulator
	}
	text, err := run(nil, argv[0], argv[1:]...)
	if err != nil {
		return "", err
	}
	if n := len(regexp.MustCompile(`(?m)^fetch through \S+ +client → .* bytes in `).FindAllString(text, -1)); n != 2 {
		return "", fmt.Errorf("the demo fetches %d pages, not 2:\n%s", n, text)
	}
	return how, nil
}
