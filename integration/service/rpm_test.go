//go:build integration

package service

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"ptgate/integration/realpt"
)

// rpms makes a directory with packages of the version that was made, 1.rpm, and of two later
// ones with other defaults, 2.rpm and 3.rpm; and rpm, a program that needs nothing of the
// machine in which it runs: Debian's has none.
func rpms(t *testing.T) string {
	t.Helper()
	dir, from, work := readable(t), only(t, "rpm"), scratch(t)
	t.Cleanup(func() { must(t, "rm", "-r", dir) })
	must(t, "cp", from, filepath.Join(dir, "1.rpm"))
	tree := mkdir(t, filepath.Join(work, "tree"))
	must(t, "sh", "-c", `rpm2archive - <"$1" | tar -xz -C "$2"`, "sh", from, tree)
	must(t, "sh", "-euc", `mkdir -p "$1/lib"
		cp "$2" "$1/program"
		ldd "$2" | sed -n 's/.* => \(.*\) (.*/\1/p' | xargs cp -t "$1/lib"
		cp "$(ldd "$2" | sed -n 's/^\t\(\/.*\) (.*/\1/p')" "$1/loader"
		cp -r /usr/lib/rpm "$1/config"`, "sh", filepath.Join(dir, "rpm"), realpt.Program(t, "rpm"))
	// One line a file, as a specification has them, and then the scripts.
	files := must(t, "rpm", "-qp", "--queryformat", `[%{FILEFLAGS:fflags} %{FILEMODES:octal} %{FILEUSERNAME} %{FILEGROUPNAME} %{FILENAMES}\n]`, from)
	var list strings.Builder
	for line := range strings.Lines(files) {
		f := strings.Fields(line)
		flags := ""
		if len(f) == 5 {
			flags, f = "%config(noreplace) ", f[1:]
		}
		if strings.HasPrefix(f[0], "4") { // a directory, and not what is in it
			flags = "%dir "
		}
		fmt.Fprintf(&list, "%s%%attr(%s, %s, %s) %s\n", flags, f[0][len(f[0])-3:], f[1], f[2], f[3])
	}
	scripts := must(t, "rpm", "-qp", "--queryformat", `%|PREIN?{%%pre\n%{PREIN}\n}|%%post\n%{POSTIN}\n%%preun\n%{PREUN}\n%%postun\n%{POSTUN}\n`, from)
	for _, n := range []string{"2", "3"} {
		must(t, "sed", "-i", "1s/.*/# The default of version "+n+"./", filepath.Join(tree, "etc", "ptgate", "ptgate.toml"))
		spec := fmt.Sprintf("Name: ptgate\nVersion: 9.%s\nRelease: 1\nSummary: a later one\nLicense: GPL-3.0-or-later\nAutoReqProv: no\nRequires: systemd\n"+
			"%%global _binary_payload w1.gzdio\n%%global __os_install_post %%{nil}\n%%global debug_package %%{nil}\n%%description\n%%install\ncp -a %s/. %%{buildroot}\n%s%%files\n%s", n, tree, scripts, &list)
		file := filepath.Join(work, n+".spec")
		must(t, "sh", "-c", `printf %s "$2" >"$1"`, "sh", file, spec)
		must(t, "rpmbuild", "-bb", "--quiet", "--define", "_topdir "+work, "--define", "_rpmdir "+work, "--define", "_rpmfilename "+n+".rpm", file)
		must(t, "mv", filepath.Join(work, n+".rpm"), dir)
	}
	return dir
}

// TestRPMPackage: the .rpm is installed, upgraded with a default that has changed, with and
// without changes of the user's, and removed, in the same machine, whose systemd has the
// presets of Fedora.
func TestRPMPackage(t *testing.T) {
	m := boot(t, rpms(t))
	m.write(t, "/etc/systemd/system-preset/99-default-disable.preset", "disable *\n")
	run := func(args ...string) string {
		t.Helper()
		// The machine's systemd is no .rpm.
		return m.must(t, append([]string{"env", "RPM_CONFIGDIR=/packages/rpm/config", "/packages/rpm/loader", "--library-path", "/packages/rpm/lib", "/packages/rpm/program",
			"--dbpath=/var/lib/rpm", "--force-debian", "--nodeps"}, args...)...)
	}
	install := func(n string) {
		t.Helper()
		if out := run("--upgrade", "/packages/"+n+".rpm"); strings.Contains(out, "failed") {
			t.Error(out)
		}
	}
	owner := func(want string) {
		t.Helper()
		if got := strings.TrimSpace(m.must(t, "stat", "--format=%U:%G %a", config)); got != want {
			t.Errorf("the configuration is of %s, want %s", got, want)
		}
	}
	head := func(file, want string) {
		t.Helper()
		if got := m.must(t, "head", "-1", file); !strings.HasPrefix(got, want) {
			t.Errorf("%s begins with %q, want %q", file, got, want)
		}
	}

	install("1")
	owner("ptgate:ptgate 600")
	m.want(t, "LoadState=loaded", "ActiveState=inactive", "UnitFileState=disabled")
	m.must(t, "systemctl", "enable", "--now", "ptgate")
	m.want(t, "ActiveState=active", "NRestarts=0")
	// Its default has changed, and nobody has edited it.
	first := m.show(t, "MainPID")
	install("2")
	head(config, "# The default of version 2.")
	owner("ptgate:ptgate 600")
	m.want(t, "ActiveState=active", "UnitFileState=enabled")
	if now := m.show(t, "MainPID"); now == first {
		t.Error("the service was not started anew")
	}
	// It was edited.
	m.must(t, "sed", "-i", "1s/.*/# Mine./", config)
	install("3")
	head(config, "# Mine.")
	owner("ptgate:ptgate 600")
	head(config+".rpmnew", "# The default of version 3.")
	m.want(t, "ActiveState=active")

	run("--erase", "ptgate")
	m.want(t, "ActiveState=inactive")
	head(config+".rpmsave", "# Mine.")
	m.must(t, "test", "-d", "/var/lib/ptgate")
	if out := m.must(t, "find", "/usr", "-path", "*/ptgate*"); out != "" {
		t.Errorf("it leaves\n%s", out)
	}
	if _, code := m.run(t, "test", "-e", "/usr/bin/ptgate"); code == 0 {
		t.Error("the program is there after the package was removed")
	}
	if out := strings.TrimSpace(m.must(t, "systemctl", "list-units", "--all", "--plain", "--no-legend", "ptgate*")); out != "" {
		t.Errorf("systemd still knows %q", out)
	}
}
