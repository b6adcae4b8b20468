//go:build unix

package permissions_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"ptgate/gateway/config"
	"ptgate/gateway/permissions"
	"ptgate/gateway/testkit"
)

func TestCheck(t *testing.T) {
	for _, tt := range []struct {
		mode os.FileMode
		want string // in the error; "": none
	}{
		{0o600, ""}, {0o400, ""}, {0o644, ""}, {0o755, ""}, {0o700, ""},
		{0o602, "chmod go-w "}, {0o666, "mode 0666"}, {0o777, "chmod go-w "},
	} {
		for _, dir := range []bool{false, true} {
			path := filepath.Join(t.TempDir(), "it")
			err := os.WriteFile(path, nil, 0o600)
			if dir {
				err = os.Remove(path)
				if err == nil {
					err = os.Mkdir(path, 0o700)
				}
			}
			if err == nil {
				err = os.Chmod(path, tt.mode)
			}
			if err != nil {
				t.Fatal(err)
			}
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			err = permissions.Check(path, info)
			if dir {
				err = permissions.CheckDir(path)
			}
			if (err == nil) != (tt.want == "") || err != nil && (!strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), path)) {
				t.Errorf("mode %o, directory %v: %v", tt.mode, dir, err)
			}
		}
	}
}

// A pipe, as of `ptgate check -c <(…)`, is the shell's.
func TestPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(path, 0o666); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err == nil {
		err = permissions.Check(path, info)
	}
	if err != nil {
		t.Error(err)
	}
}

// A link of one's own is fine: systemd makes one with DynamicUser=.
func TestOwnLink(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "link")
	if err := os.Mkdir(filepath.Join(dir, "private"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("private", link); err != nil {
		t.Fatal(err)
	}
	if err := permissions.CheckDir(link); err != nil {
		t.Error(err)
	}
}

// What others own. The test is about a user who is not root, so root runs it as one.
func TestOthers(t *testing.T) {
	testkit.Root(t)
	const me, other = 65534, 65533
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	make := func(name string, owner int) string {
		path := filepath.Join(dir, name)
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(path, owner, owner); err != nil {
			t.Fatal(err)
		}
		return path
	}
	mine, roots, others := make("mine", me), make("roots", 0), make("others", other)
	link := filepath.Join(dir, "link")
	if err := os.Symlink("mine", link); err != nil {
		t.Fatal(err)
	}
	if err := os.Lchown(link, other, other); err != nil {
		t.Fatal(err)
	}
	if err := permissions.CheckDir(others); err != nil {
		t.Errorf("root looks at a service's directory: %v", err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := asUser(me, func() {
		for path, want := range map[string]string{mine: "", roots: "", others: "chown 65534 " + others, link: "a link that user 65533 has made"} {
			err := permissions.CheckDir(path)
			if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %q", path, err, want)
			}
		}
	}); err != nil {
		t.Fatal(err)
	}
}

// Groups that may write: the user's own, as a umask of 002 leaves files, and for a directory
// also the one in which the process runs. Root can become others, so root runs it.
func TestGroup(t *testing.T) {
	testkit.Root(t)
	const me, other = 65534, 65533
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for i, tt := range []struct {
		user, group   int // of the process
		owner, shared int // of the file or directory
		mode          uint32
		file, dir     bool // whether it is fine
	}{
		{me, me, me, me, 0o664, true, true},
		{me, me, 0, me, 0o660, true, true},
		{me, me, me, me, 0o666, false, false},
		{me, me, me, me, 0o606, false, false},
		{me, me, me, other, 0o664, false, false},
		{me, me, 0, 0, 0o664, false, false},
		{me, me, other, me, 0o660, false, false},
		{me, other, me, other, 0o664, false, true},
		{me, other, 0, other, 0o2770, false, true},
		{me, other, me, other, 0o2772, false, false},
		{me, other, me, me, 0o660, false, false},
		{0, 0, 0, 0, 0o664, true, true},
		{0, 0, me, me, 0o664, true, true},
		{0, 0, 0, 0, 0o666, false, false},
		{0, 0, 0, me, 0o660, false, false},
		{0, 0, me, other, 0o660, false, false},
	} {
		for _, isDir := range []bool{false, true} {
			path := filepath.Join(dir, fmt.Sprint(i, isDir))
			want := tt.file
			err := os.WriteFile(path, nil, 0o600)
			if isDir {
				want = tt.dir
				err = errors.Join(os.Remove(path), os.Mkdir(path, 0o700))
			}
			err = errors.Join(err, os.Chown(path, tt.owner, tt.shared), syscall.Chmod(path, tt.mode), syscall.Setegid(tt.group))
			if err != nil {
				t.Fatal(err)
			}
			var got error
			err = asUser(tt.user, func() { got = permissions.CheckDir(path) })
			if err = errors.Join(err, syscall.Setegid(0)); err != nil {
				t.Fatal(err)
			}
			if (got == nil) != want {
				t.Errorf("%+v, directory %v: %v", tt, isDir, got)
			}
		}
	}
}

// TestDenied: whom a file must belong to so that it can be read, and the error of a configuration
// has it.
func TestDenied(t *testing.T) {
	testkit.Root(t)
	const me = 65533
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	roots, mine, closed := filepath.Join(dir, "roots"), filepath.Join(dir, "mine"), filepath.Join(dir, "closed")
	service := filepath.Join(dir, "service")
	if err := errors.Join(os.Chmod(dir, 0o755), os.Mkdir(closed, 0o700),
		os.WriteFile(roots, nil, 0o600), os.WriteFile(mine, nil, 0o200), os.Chown(mine, me, me),
		os.WriteFile(service, nil, 0o600), os.Chown(service, 65532, 65532)); err != nil {
		t.Fatal(err)
	}
	t.Chdir(closed)
	if err := asUser(me, func() {
		for path, want := range map[string]string{
			"a.toml": "user 65533, as whom this runs, may not look into the directory where it was called: cd elsewhere",
			roots:    "belongs to user 0 (mode 0600), and this runs as user 65533, who must own it: chown 65533 " + roots,
			mine:     "chmod u+r " + mine,
			service: "belongs to user 65532 (mode 0600), and this runs as user 65533: run it as that user or as root, " +
				"or, if the file is meant for user 65533, chown 65533 " + service,
			filepath.Join(closed, "a.toml"): "user 65533, as whom this runs, may not look into its directory",
		} {
			if got := permissions.Denied(path); !strings.HasSuffix(got, want) {
				t.Errorf("%s: %q, want %q", path, got, want)
			}
			if cfg, problems := config.Load(path); cfg != nil || len(problems) != 1 || !strings.HasSuffix(problems[0].Message, "permission denied: "+permissions.Denied(path)) {
				t.Errorf("%s: %v", path, problems)
			}
		}
	}); err != nil {
		t.Fatal(err)
	}
}

func asUser(id int, f func()) error {
	if err := syscall.Seteuid(id); err != nil {
		return err
	}
	f()
	return syscall.Seteuid(0)
}

func Example() {
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o777); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(strings.ReplaceAll(permissions.CheckDir(dir).Error(), dir, "DIR"))
	// Output: others can write it (mode 0777), and so choose what ptgate does: chmod go-w DIR
}
