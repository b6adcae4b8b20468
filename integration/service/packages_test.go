//go:build integration

package service

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"ptgate/integration/realpt"
)

// made is the directory of the packages, and repacked that of debs, once they are made.
var made, repacked string

func TestMain(m *testing.M) {
	made = os.Getenv("PTGATE_TEST_PACKAGES")
	given := made != ""
	code := m.Run()
	if !given {
		os.RemoveAll(made)
	}
	os.RemoveAll(repacked)
	os.Exit(code)
}

// readable makes a directory that everybody can read.
func readable(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ptgate-packages-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// release is a directory with a release, or the one that PTGATE_TEST_PACKAGES names.
func release(t *testing.T) string {
	t.Helper()
	if made == "" {
		made = readable(t)
		must(t, "go", "-C", "../..", "run", "./integration/release", "packages", made)
	}
	return made
}

// only is the one file of a release with this ending.
func only(t *testing.T, ending string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(release(t), "ptgate_*."+ending))
	if err != nil || len(files) != 1 {
		t.Fatalf("packages: %q, %v", files, err)
	}
	return files[0]
}

// debs makes a directory with packages of the version that was made, 1.deb, and of two
// later ones with other defaults, 2.deb and 3.deb; and clone, what the README installs
// without a package.
func debs(t *testing.T) string {
	t.Helper()
	if repacked != "" {
		return repacked
	}
	dir, deb := readable(t), only(t, "deb")
	repacked = dir
	must(t, "cp", deb, filepath.Join(dir, "1.deb"))
	tree := filepath.Join(scratch(t), "tree")
	must(t, "dpkg-deb", "-R", deb, tree)
	must(t, "cp", "-r", "../../systemd", filepath.Join(mkdir(t, filepath.Join(dir, "clone")), "systemd"))
	must(t, "cp", filepath.Join(tree, "usr", "bin", "ptgate"), filepath.Join(dir, "clone"))
	for _, n := range []string{"2", "3"} {
		must(t, "sed", "-i", "s/^Version: .*/Version: 9."+n+"/", filepath.Join(tree, "DEBIAN", "control"))
		must(t, "sed", "-i", "1s/.*/# The default of version "+n+"./", filepath.Join(tree, "etc", "ptgate", "ptgate.toml"))
		must(t, "dpkg-deb", "-Zgzip", "-z1", "--root-owner-group", "-b", tree, filepath.Join(dir, n+".deb"))
	}
	return dir
}

// TestLintian: Debian's checker finds no error in the .deb.
func TestLintian(t *testing.T) {
	out, code := command(t, realpt.Program(t, "lintian"), "--allow-root", "--fail-on", "error", only(t, "deb"))
	if code != 0 {
		t.Errorf("exit code %d\n%s", code, out)
	}
	t.Log(out)
}

// TestRPM: the .rpm has the files of the .deb, with the same contents, and its scripts are
// shell.
func TestRPM(t *testing.T) {
	rpm := realpt.Program(t, "rpm")
	dir := scratch(t)
	must(t, "dpkg-deb", "-x", only(t, "deb"), filepath.Join(dir, "deb"))
	mkdir(t, filepath.Join(dir, "rpm"))
	must(t, "sh", "-c", `rpm2archive - <"$1" | tar -xz -C "$2"`, "sh", only(t, "rpm"), filepath.Join(dir, "rpm"))
	out, _ := command(t, "diff", "-rq", filepath.Join(dir, "deb"), filepath.Join(dir, "rpm"))
	var differ []string
	for line := range strings.Lines(strings.ReplaceAll(out, dir+"/", "")) {
		differ = append(differ, strings.TrimSpace(line))
	}
	slices.Sort(differ)
	if want := []string{
		"Files deb/usr/share/doc/ptgate/copyright and rpm/usr/share/doc/ptgate/copyright differ",
		"Only in deb/usr/share/doc/ptgate: changelog.gz",
		"Only in deb/usr/share/zsh: vendor-completions",
		"Only in deb/usr/share: lintian",
		"Only in rpm/usr/share/zsh: site-functions",
	}; !slices.Equal(differ, want) {
		t.Errorf("they differ in %q", differ)
	}
	for _, script := range []string{"PREIN", "POSTIN", "PREUN", "POSTUN"} {
		text := must(t, rpm, "-qp", "--queryformat", "%{"+script+"}", only(t, "rpm"))
		if out, code := command(t, "sh", "-n", "-c", text); code != 0 || len(text) < 50 {
			t.Errorf("%s: %q: %s", script, text, out)
		}
	}
	// What it does not list stays when it is removed.
	own := must(t, rpm, "-qp", "--queryformat", `[%{FILEMODES:octal} %{FILENAMES}\n]`, only(t, "rpm"))
	err := filepath.WalkDir(filepath.Join(dir, "deb"), func(path string, entry fs.DirEntry, err error) error {
		name := strings.TrimPrefix(path, filepath.Join(dir, "deb"))
		if err == nil && entry.IsDir() && strings.Contains(name, "/ptgate") && !strings.Contains(own, "40755 "+name+"\n") {
			t.Errorf("the .rpm does not list %s", name)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if got := strings.TrimSpace(must(t, rpm, "-qp", "--configfiles", only(t, "rpm"))); got != "/etc/ptgate/ptgate.toml" {
		t.Errorf("configuration files are %q", got)
	}
}

// TestPackage: the .deb is installed, upgraded with a default that has changed, with and
// without changes of the user's, removed, and purged, and leaves nothing.
func TestPackage(t *testing.T) {
	m := boot(t, debs(t))
	const config = "/etc/ptgate/ptgate.toml"
	before := m.must(t, "sh", "-c", `find / -xdev -path "*ptgate*" -not -path "/packages*"`)
	owner := func(want string) {
		t.Helper()
		if got := strings.TrimSpace(m.must(t, "stat", "--format=%U:%G %a", config)); got != want {
			t.Errorf("the configuration is of %s, want %s", got, want)
		}
	}
	install := func(n string, more ...string) {
		t.Helper()
		m.must(t, append(append([]string{"dpkg", "--force-unsafe-io"}, more...), "--install", "/packages/"+n+".deb")...)
	}
	head := func(want string) {
		t.Helper()
		if got := m.must(t, "head", "-1", config); !strings.HasPrefix(got, want) {
			t.Errorf("the configuration begins with %q, want %q", got, want)
		}
	}

	install("1")
	owner("ptgate:ptgate 600")
	m.want(t, "LoadState=loaded", "ActiveState=inactive", "UnitFileState=disabled")
	if out := m.must(t, "setpriv", "--reuid=ptgate", "--regid=ptgate", "--clear-groups", "ptgate", "check"); !strings.Contains(out, ": fine: ") || strings.Contains(out, "warning") {
		t.Errorf("check says %q", out)
	}
	if out := m.must(t, "ptgate", "check"); strings.Contains(out, "warning") {
		t.Errorf("to root check says %q", out)
	}
	m.must(t, "systemctl", "enable", "--now", "ptgate")
	m.want(t, "ActiveState=active", "NRestarts=0")
	if out := m.must(t, "cat", "/proc/net/tcp", "/proc/net/tcp6"); strings.Contains(out, " 0A ") { // TCP_LISTEN
		t.Errorf("the default configuration listens:\n%s", out)
	}

	// Its default has changed, and nobody has edited it.
	first := m.show(t, "MainPID")
	install("2")
	head("# The default of version 2.")
	owner("ptgate:ptgate 600")
	m.want(t, "ActiveState=active", "UnitFileState=enabled")
	if now := m.show(t, "MainPID"); now == first {
		t.Error("the service was not started anew")
	}
	// It was edited.
	m.must(t, "sed", "-i", "1s/.*/# Mine./", config)
	install("3", "--force-confold")
	head("# Mine.")
	owner("ptgate:ptgate 600")
	if got := m.must(t, "head", "-1", config+".dpkg-dist"); !strings.HasPrefix(got, "# The default of version 3.") {
		t.Errorf("the new default beside it begins with %q", got)
	}
	m.want(t, "ActiveState=active")

	m.must(t, "dpkg", "--remove", "ptgate")
	m.want(t, "ActiveState=inactive")
	head("# Mine.")
	m.must(t, "test", "-d", "/var/lib/ptgate")
	if _, code := m.run(t, "test", "-e", "/usr/bin/ptgate"); code == 0 {
		t.Error("the program is there after the package was removed")
	}

	// Installed anew, with the old configuration.
	install("3")
	head("# Mine.")
	m.want(t, "UnitFileState=enabled")
	m.must(t, "systemctl", "start", "ptgate")
	m.must(t, "dpkg", "--purge", "ptgate")
	if after := m.must(t, "sh", "-c", `find / -xdev -path "*ptgate*" -not -path "/packages*"`); after != before {
		t.Errorf("it leaves\n%s", after)
	}
	if out := strings.TrimSpace(m.must(t, "systemctl", "list-units", "--all", "--plain", "--no-legend", "ptgate*")); out != "" {
		t.Errorf("systemd still knows %q", out)
	}
	install("1")
	m.want(t, "UnitFileState=disabled", "LoadState=loaded")
	head("# What a package installs")
}
