// Command release checks what a release is made of, and makes one:
//
//	go run ./integration/release licences                   the linked modules against the table of its README.md
//	go run ./integration/release vulnerabilities [latest]   those of the Go vulnerability database that the code reaches
//	go run ./integration/release build DIR                  the program, built twice, and its SBOM (SPDX), into DIR
//	go run ./integration/release packages DIR               the same, and a .deb and a .rpm of it
//	go run ./integration/release systems                    the program for all systems; those for Linux are run
//
// It runs on Linux, and needs the go command, and a module proxy or a full module cache. The database
// is the version that stands in the source, so that the answer does not depend on the day; with "latest"
// it is the newest one. Who takes a newer version into the source finds out what it adds.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

func main() {
	commands := map[string]func(args []string) error{
		"licences": licences, "vulnerabilities": vulnerabilities, "build": build, "packages": packages, "systems": buildSystems,
	}
	var err error
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		err = errors.New("usage: release licences | vulnerabilities [latest] | build DIR | packages DIR | systems")
	} else {
		err = commands[os.Args[1]](os.Args[2:])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "release:", err)
		os.Exit(1)
	}
}

// program is the package of a release.
const program = "./cmd/ptgate"

// run runs a command and returns what it prints.
func run(env []string, name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, errs.String())
	}
	return out.String(), nil
}
