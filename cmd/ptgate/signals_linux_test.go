package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ptgate/gateway/control"
)

var endings = []syscall.Signal{syscall.SIGINT, syscall.SIGTERM}

// A configuration that never comes holds every command that reads one.
func TestSignalWhileLoading(t *testing.T) {
	for _, args := range [][]string{
		{"check"}, {"explain", "example.com"}, {"bridges"}, {"probe"}, {"env"}, {"status"}, {"reload"}, {"run"},
		{"add-bridge", "webtunnel 192.0.2.10:443 url=https://example.com/one"},
	} {
		for _, sig := range endings {
			t.Run(fmt.Sprint(args[0], " ", sig), func(t *testing.T) {
				c := newChild(t, append(args, "-c", "ptgate.toml")...)
				held := "ptgate.toml"
				if args[0] != "status" && args[0] != "reload" { // which read no lists
					held = "list"
					c.write("ptgate.toml", "[[route]]\nto_file = \"list\"\nvia = \"block\"\n")
				}
				c.fifo(held)
				c.start()
				c.reads(held)
				c.diesOf(sig, sig, "ptgate.toml", "list")
			})
		}
	}
}

// The new file of add-bridge is checked while the old one stands untouched.
func TestSignalWhileCheckingNewFile(t *testing.T) {
	const text = "[[route]]\nto_file = \"list\"\nvia = \"block\"\n"
	for _, sig := range endings {
		t.Run(sig.String(), func(t *testing.T) {
			c := newChild(t, "add-bridge", "-c", "ptgate.toml", "webtunnel 192.0.2.10:443 url=https://example.com/one")
			c.write("ptgate.toml", text)
			c.fifo("list")
			c.start()
			first := c.reads("list")
			io.WriteString(first, "example.com\n")
			// Both readings of it must not share one opening.
			os.Remove(filepath.Join(c.dir, "list"))
			c.fifo("list")
			first.Close()
			c.reads("list")
			c.diesOf(sig, sig, "ptgate.toml", "list")
			if b, err := os.ReadFile(filepath.Join(c.dir, "ptgate.toml")); err != nil || string(b) != text {
				t.Errorf("the file is now %q, %v", b, err)
			}
		})
	}
}

// Ctrl-C where a line is to be pasted, at a terminal.
func TestControlCAtPrompt(t *testing.T) {
	c := newChild(t, "add-bridge", "-c", "ptgate.toml", "-")
	c.write("ptgate.toml", direct)
	terminal, tty := openTerminal(t)
	c.Stdin, c.Stderr = tty, tty
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	c.start()
	tty.Close()
	seen := make([]byte, 256)
	n := 0
	for !bytes.Contains(seen[:n], []byte("paste the line")) {
		k, err := terminal.Read(seen[n:])
		if err != nil {
			t.Fatalf("%q, %v", seen[:n], err)
		}
		n += k
	}
	if _, err := terminal.Write([]byte{3}); err != nil {
		t.Fatal(err)
	}
	c.diesOf(0, syscall.SIGINT, "ptgate.toml")
}

// openTerminal makes a terminal: what is typed, and what a program sits at.
func openTerminal(t *testing.T) (keys, tty *os.File) {
	t.Helper()
	keys, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { keys.Close() })
	if err := unix.IoctlSetPointerInt(int(keys.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(keys.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tty.Close() })
	return keys, tty
}

// The same where the line comes through a pipe that stays open.
func TestSignalWhileReadingLine(t *testing.T) {
	for _, sig := range endings {
		t.Run(sig.String(), func(t *testing.T) {
			c := newChild(t, "add-bridge", "-c", "ptgate.toml", "-")
			c.write("ptgate.toml", direct)
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			size, err := unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, 4096)
			if err != nil {
				t.Fatal(err)
			}
			c.Stdin = r
			c.start()
			r.Close()
			// More than the pipe holds: when it is written, somebody reads.
			if _, err := w.WriteString(strings.Repeat("x", size+1)); err != nil {
				t.Fatal(err)
			}
			c.diesOf(sig, sig, "ptgate.toml")
		})
	}
}

// A bridge that never answers holds `probe`, which has a directory and a program.
func TestSignalWhileProbing(t *testing.T) {
	for _, isolate := range []bool{false, true} {
		for _, sig := range endings {
			t.Run(fmt.Sprintf("isolate=%t %v", isolate, sig), func(t *testing.T) {
				c := newChild(t, "probe", "-c", "ptgate.toml")
				silent, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				defer silent.Close()
				c.write("ptgate.toml", fmt.Sprintf(`
[bridge.silent]
line = "obfs4 %s cert=XHQQLQGlwhGz44t+DM2ekE1+VWVcS8Dg1G3p3PKLtwBiNw2zDPjp/NEOPDaVCm0RKMootA iat-mode=0"
[pt.apart]
transports = ["obfs4"]
isolate = %t
[[route]]
to = "*"
via = "silent"
`, silent.Addr(), isolate))
				c.start()
				conn, err := silent.Accept()
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				c.diesOf(sig, sig, "ptgate.toml")
				// Nobody holds the connection any more.
				conn.SetReadDeadline(time.Now().Add(time.Minute))
				if _, err := io.Copy(io.Discard, conn); err != nil && os.IsTimeout(err) {
					t.Error("the transport program lives on")
				}
			})
		}
	}
}

// A transport program that never says anything holds `bridges` and `run`.
func TestSignalWhileStarting(t *testing.T) {
	for _, command := range []string{"bridges", "run"} {
		for _, sig := range endings {
			t.Run(command+" "+sig.String(), func(t *testing.T) {
				c := newChild(t, command, "-c", "ptgate.toml")
				c.write("ptgate.toml", fmt.Sprintf(`
state_dir = "state"
[pt.dust]
exec = ["/bin/sh", "-c", "read x <%s; read x"]
transports = ["dust"]
[[serve]]
transport = "dust"
bind = "127.0.0.1:0"
`, filepath.Join(c.dir, "fifo")))
				c.fifo("fifo")
				c.start()
				c.reads("fifo").Close()
				if command == "bridges" {
					c.diesOf(sig, sig, "ptgate.toml", "state", "fifo")
					return
				}
				c.signal(sig)
				c.succeeds()
				c.leaves("ptgate.toml", "state", "fifo")
			})
		}
	}
}

// A ptgate that never answers holds `status` and `reload`.
func TestSignalWhileAsking(t *testing.T) {
	for _, command := range []string{"status", "reload"} {
		for _, sig := range endings {
			t.Run(command+" "+sig.String(), func(t *testing.T) {
				c := newChild(t, command, "-c", "ptgate.toml")
				c.write("ptgate.toml", "state_dir = \".\"\n")
				ln, err := net.Listen("unix", control.Path(c.dir, filepath.Join(c.dir, "ptgate.toml")))
				if err != nil {
					t.Fatal(err)
				}
				defer ln.Close()
				c.start()
				conn, err := ln.Accept()
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				c.diesOf(sig, sig, "ptgate.toml", filepath.Base(ln.Addr().String()))
			})
		}
	}
}

// Ctrl-C is how a demo that works is ended.
func TestSignalDemo(t *testing.T) {
	for _, sig := range endings {
		t.Run(sig.String(), func(t *testing.T) {
			c := newChild(t, "demo")
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			c.Stdout = w
			c.start()
			w.Close()
			text := ""
			for b := make([]byte, 4096); !strings.Contains(text, "Ctrl-C ends the demo"); {
				n, err := r.Read(b)
				if err != nil {
					t.Fatalf("%s%s, %v", text, &c.out, err)
				}
				text += string(b[:n])
			}
			c.signal(sig)
			c.succeeds()
			c.leaves()
		})
	}
}

// A file that is being reloaded, and never comes to its end, does not hold a stop.
func TestSignalWhileReloading(t *testing.T) {
	for _, how := range []string{"SIGHUP", "reload"} {
		t.Run(how, func(t *testing.T) {
			c := newChild(t, "run", "-c", "ptgate.toml")
			c.write("ptgate.toml", direct)
			c.startReady()
			c.write("ptgate.toml", direct+"[[route]]\nto_file = \"list\"\nvia = \"block\"\n")
			c.fifo("list")
			if how == "SIGHUP" {
				c.signal(syscall.SIGHUP)
			} else {
				asking := make(chan struct{})
				go func() {
					defer close(asking)
					control.Reload(t.Context(), control.Path(filepath.Join(c.dir, "state"), filepath.Join(c.dir, "ptgate.toml")))
				}()
				defer func() { <-asking }()
			}
			c.reads("list")
			c.signal(syscall.SIGTERM)
			c.succeeds()
		})
	}
}
