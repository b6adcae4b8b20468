//go:build unix

package adapter

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// The transport program of these tests is the test binary itself, run again
// with the name of a role in its environment.
const (
	roleVariable   = "FAKE_PT_ROLE"
	tagVariable    = "FAKE_PT_TAG"    // names the test, so that leaked processes are found
	notifyVariable = "FAKE_PT_NOTIFY" // an address to hold a connection to as long as it lives
)

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVariable); role != "" {
		play(role)
		os.Exit(0)
	}
	// Let the runtime open what it keeps open, before descriptors are counted.
	if l, err := net.Listen("tcp", "127.0.0.1:0"); err == nil {
		l.Close()
	}
	os.Exit(m.Run())
}

func say(lines ...string) { fmt.Print(strings.Join(lines, "\n") + "\n") }

// untilStdinCloses is what a well-behaved program does once it is ready.
func untilStdinCloses() { io.Copy(io.Discard, os.Stdin) }

// untilKilled waits for ever. An empty select would be a deadlock to a program
// without cgo.
func untilKilled() { <-time.After(math.MaxInt64) }

// notify holds a connection to the test, which sees by its end that this
// process is gone.
func notify(hello string) net.Conn {
	c, err := net.Dial("tcp", os.Getenv(notifyVariable))
	if err != nil {
		os.Exit(90)
	}
	fmt.Fprintln(c, hello)
	return c
}

// listenSOCKS serves SOCKS connections and returns the address.
func listenSOCKS(serve func(net.Conn)) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		os.Exit(91)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go serve(c)
		}
	}()
	return l.Addr().String()
}

// ready says all that a client with the one transport "fake" has to say.
func ready(serve func(net.Conn)) {
	say("VERSION 1", "CMETHOD fake socks5 "+listenSOCKS(serve), "CMETHODS DONE")
}

// session is what a client asked for.
type session struct {
	User, Password, Addr string
	NoAuth               bool
}

// takeSOCKS5 is the server's side of a SOCKS5 session up to the reply. Like
// obfs4proxy it drops connections on which anything comes before its turn.
func takeSOCKS5(c net.Conn) (s session, err error) {
	take := func(n int) []byte {
		b := make([]byte, n)
		if err == nil {
			_, err = io.ReadFull(c, b)
		}
		return b
	}
	methods := take(int(take(2)[1]))
	method := byte(0)
	if bytes.IndexByte(methods, 2) >= 0 {
		method = 2
	}
	if err != nil {
		return
	}
	if tooEarly(c) {
		return s, errors.New("pipelined")
	}
	c.Write([]byte{5, method})
	if s.NoAuth = method == 0; !s.NoAuth {
		s.User = string(take(int(take(2)[1])))
		s.Password = string(take(int(take(1)[0])))
		if err == nil && tooEarly(c) {
			return s, errors.New("pipelined")
		}
		c.Write([]byte{1, 0})
	}
	head := take(4)
	var host string
	switch head[3] {
	case 1:
		host = net.IP(take(4)).String()
	case 4:
		host = net.IP(take(16)).String()
	case 3:
		host = string(take(int(take(1)[0])))
	}
	s.Addr = net.JoinHostPort(host, fmt.Sprint(binary.BigEndian.Uint16(take(2))))
	if err == nil && tooEarly(c) {
		return s, errors.New("pipelined")
	}
	return
}

// tooEarly says whether bytes wait that cannot be an answer to anything.
func tooEarly(c net.Conn) bool {
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return true
	}
	n := 0
	raw.Control(func(fd uintptr) {
		n, _, _ = syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	})
	return n > 0
}

var success = []byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0}

// echo serves SOCKS5, tells in a line of JSON what was asked for, and echoes.
// The line comes in one write with the reply, so a dialler that reads too far
// loses some of it. The word "die" ends the program.
func echo(c net.Conn) {
	defer c.Close()
	s, err := takeSOCKS5(c)
	if err != nil {
		return
	}
	line, _ := json.Marshal(s)
	c.Write(append(append(bytes.Clone(success), line...), '\n'))
	echoLines(c)
}

func echoLines(c net.Conn) {
	lines := bufio.NewReader(c)
	for {
		line, err := lines.ReadString('\n')
		if line == "die\n" {
			os.Exit(3)
		}
		if _, werr := io.WriteString(c, line); err != nil || werr != nil {
			return
		}
	}
}

// replying serves SOCKS5 with raw answers to greeting, args and request, and
// then hangs up; an answer "hang" waits for the client to go.
func replying(answers [][]byte) func(net.Conn) {
	return func(c net.Conn) {
		defer c.Close()
		b := make([]byte, 1024)
		for _, answer := range answers {
			if _, err := c.Read(b); err != nil {
				return
			}
			if string(answer) == "hang" {
				break
			}
			c.Write(answer)
		}
		io.Copy(io.Discard, c)
	}
}

// dripping is echo, one byte a packet.
func dripping(c net.Conn) {
	defer c.Close()
	if _, err := takeSOCKS5(c); err != nil {
		return
	}
	reply := "\x05\x00\x00\x03\x0blocalhost!!\x00\x50{}\n"
	for i := range len(reply) {
		io.WriteString(c, reply[i:i+1])
	}
	echoLines(c)
}

// socks4 serves SOCKS4, tells what was asked for, and echoes.
func socks4(c net.Conn) {
	defer c.Close()
	head := make([]byte, 8)
	if _, err := io.ReadFull(c, head); err != nil || head[0] != 4 || head[1] != 1 {
		return
	}
	r := bufio.NewReader(c)
	user, err := r.ReadString(0)
	if err != nil {
		return
	}
	line, _ := json.Marshal(session{
		User: strings.TrimSuffix(user, "\x00"),
		Addr: fmt.Sprintf("%s:%d", net.IP(head[4:8]), binary.BigEndian.Uint16(head[2:4])),
	})
	if head[4] == 198 {
		c.Write([]byte{0, 0x5b, 0, 0, 0, 0, 0, 0})
		return
	}
	c.Write(append([]byte{0, 0x5a, 0, 0, 0, 0, 0, 0}, append(line, '\n')...))
	echoLines(c)
}

// grandchild runs this binary again in another role.
func grandchild(role string, attributes *syscall.SysProcAttr) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleVariable+"="+role)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = attributes
	if err := cmd.Start(); err != nil {
		os.Exit(92)
	}
}

// play plays a role until it is over.
func play(role string) {
	switch role {
	// Clients that get ready, each in its way.
	case "good":
		ready(echo)
		untilStdinCloses()
	case "environment":
		env, _ := json.Marshal(os.Environ())
		say("PROXY DONE") // the answer to TOR_PT_PROXY
		ready(func(c net.Conn) {
			defer c.Close()
			if _, err := takeSOCKS5(c); err == nil {
				c.Write(append(append(bytes.Clone(success), env...), '\n'))
			}
		})
		untilStdinCloses()
	case "proxy":
		say("VERSION 1", "PROXY DONE", "CMETHOD fake socks5 "+listenSOCKS(echo), "CMETHODS DONE")
		untilStdinCloses()
	case "two, one fails":
		say("VERSION 1", "CMETHOD-ERROR broken no such thing", "CMETHOD fake socks5 "+listenSOCKS(echo), "CMETHODS DONE")
		untilStdinCloses()
	case "two, one unmentioned", "unconfirmed proxy":
		say("VERSION 1", "CMETHOD fake socks5 "+listenSOCKS(echo), "CMETHODS DONE")
		untilKilledBy(syscall.SIGTERM)
	case "strange lines":
		say("", "VERSIONS 2", "VERSION-ERRORS none", "HELLO", "VERSION 1", "VERSION 2", " VERSION 1", "CMETHODX a", "PROXY DONE",
			"CMETHOD other socks5 127.0.0.1:1", "CMETHOD", "CMETHODS", "SMETHODS DONE", "CMETHOD-ERROR", "LOG", "STATUS x",
			"CMETHOD fake socks5 "+listenSOCKS(echo)+" ARGS=old OPT-ARGS=older\r", "CMETHOD fake socks5 127.0.0.1:1",
			"CMETHOD-ERROR fake too late", "CMETHODS DONE\r", "CMETHODS DONE", "CMETHOD-ERROR fake later still", "VERSION-ERROR late")
		untilStdinCloses()
	case "talkative":
		say(`LOG SEVERITY=debug MESSAGE="before \"VERSION\""`, `STATUS TRANSPORT=fake STEP=1 WORDS="two words"`)
		ready(echo)
		say(`LOG MESSAGE="after\nDONE" SEVERITY=error`, `LOG SEVERITY=notice MESSAGE=plain`, `STATUS X=1`)
		untilStdinCloses()
	case "nul and bytes":
		say("\x00\x00", "LOG SEVERITY=warning MESSAGE=\"\\377\\xfe\x00\xff\"", "\xff VERSION 1")
		ready(echo)
		untilStdinCloses()
	case "byte by byte":
		r, w, _ := os.Pipe()
		stdout := os.Stdout
		os.Stdout = w
		ready(echo)
		w.Close()
		text, _ := io.ReadAll(r)
		for i := range text {
			stdout.Write(text[i : i+1])
		}
		untilStdinCloses()
	case "long line":
		say(strings.Repeat("x", 10<<20))
		ready(echo)
		untilStdinCloses()
	case "floods stdout":
		say(strings.Repeat("noise noise noise\n", 200_000))
		ready(echo)
		untilStdinCloses()
	case "floods stderr":
		os.Stderr.WriteString(strings.Repeat("noise noise noise\n", 200_000))
		ready(echo)
		untilStdinCloses()
	case "done and gone":
		ready(echo)
		os.Exit(4)
	case "drains":
		interrupts := make(chan os.Signal, 1)
		signal.Notify(interrupts, os.Interrupt)
		var live sync.WaitGroup
		ready(func(c net.Conn) {
			live.Add(1)
			defer live.Done()
			echo(c)
		})
		<-interrupts
		fmt.Fprintln(os.Stderr, "draining")
		live.Wait()

	// Clients that do not get ready.
	case "silent":
		fmt.Fprintln(os.Stderr, "armed")
		untilStdinCloses()
	case "silent after version", "silent after proxy", "no newline":
		say("VERSION 1")
		if role == "silent after proxy" {
			say("PROXY DONE")
		}
		if role == "no newline" {
			fmt.Print("CMETHODS DONE")
		}
		fmt.Fprintln(os.Stderr, "armed")
		untilStdinCloses()
	case "exits":
		os.Exit(1)
	case "exits with words":
		for i := range 30 {
			fmt.Fprintln(os.Stderr, "word", i)
		}
		os.Exit(1)
	case "killed":
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		untilKilled()
	case "exits after version":
		say("VERSION 1")
		os.Exit(2)
	case "exits after method":
		say("VERSION 1", "CMETHOD fake socks5 127.0.0.1:1")
		os.Exit(2)
	case "version-error":
		say("VERSION-ERROR no-version")
	case "version 2":
		say("VERSION 2")
		untilStdinCloses()
	case "env-error":
		say("ENV-ERROR no such variable")
		untilStdinCloses()
	case "proxy-error":
		say("VERSION 1", "PROXY-ERROR not that one")
		untilStdinCloses()
	case "all fail":
		say("VERSION 1", "CMETHOD-ERROR fake no", "CMETHOD-ERROR broken", "CMETHODS DONE")
		untilStdinCloses()
	case "no method":
		say("VERSION 1", "CMETHODS DONE")
	case "not loopback":
		say("VERSION 1", "CMETHOD fake socks5 192.0.2.1:1080", "CMETHODS DONE")
		untilStdinCloses()
	case "short cmethod":
		say("VERSION 1", "CMETHOD fake socks5", "CMETHODS DONE")
		untilStdinCloses()
	case "cmethod with a name":
		say("VERSION 1", "CMETHOD fake socks5 localhost:1080", "CMETHODS DONE")
		untilStdinCloses()
	case "cmethod none":
		say("VERSION 1", "CMETHOD fake none 127.0.0.1:1", "CMETHODS DONE")
		untilStdinCloses()
	case "method before version":
		say("CMETHOD fake socks5 127.0.0.1:1", "VERSION 1", "CMETHODS DONE")
		untilStdinCloses()
	case "closes stdout":
		os.Stdout.Close()
		untilStdinCloses()

	// Clients that are hard to end.
	case "ignores stdin":
		terminated := make(chan os.Signal, 1)
		signal.Notify(terminated, syscall.SIGTERM) // before the parent may send it
		ready(echo)
		<-terminated
	case "ignores everything":
		signal.Ignore(syscall.SIGTERM, os.Interrupt)
		c := notify("program")
		defer c.Close()
		ready(echo)
		untilKilled()
	case "never ready, ignores everything":
		signal.Ignore(syscall.SIGTERM, os.Interrupt)
		fmt.Fprintln(os.Stderr, "armed")
		untilKilled()
	case "forks":
		grandchild("stubborn grandchild", nil)
		ready(echo)
		untilStdinCloses()
	case "forks and leaves":
		grandchild("stubborn grandchild", nil)
		ready(echo)
		// The group must hold the grandchild before this one goes.
		io.ReadFull(os.Stdin, make([]byte, 1))
	case "forks a session":
		grandchild("polite grandchild", &syscall.SysProcAttr{Setsid: true})
		ready(echo)
		untilStdinCloses()
	case "forks a daemon":
		grandchild("goes into the background", &syscall.SysProcAttr{Setsid: true})
		ready(echo)
		untilStdinCloses()
	case "forks a hidden daemon":
		os.Unsetenv("PT_ADAPTER_CHILD")
		grandchild("goes into the background", &syscall.SysProcAttr{Setsid: true})
		ready(echo)
		untilStdinCloses()
	case "goes into the background":
		grandchild("stubborn grandchild", &syscall.SysProcAttr{Setsid: true})
	case "stubborn grandchild":
		signal.Ignore(syscall.SIGTERM, os.Interrupt)
		c := notify("grandchild")
		defer c.Close()
		untilKilled()
	case "polite grandchild": // out of reach, but ends when the test hangs up
		c := notify("grandchild")
		io.Copy(io.Discard, c)

	// SOCKS as it should not be.
	case "socks4":
		say("VERSION 1", "CMETHOD fake socks4 "+listenSOCKS(socks4), "CMETHODS DONE")
		untilStdinCloses()
	case "socks drips":
		ready(dripping)
		untilStdinCloses()

	// Servers.
	case "server":
		say("VERSION 1", `SMETHOD fake 127.0.0.1:4433 ARGS:cert=a\=b\,c\\,k=1,k=2,plain=x=y`,
			"SMETHOD other [::1]:2 ARGS:", "SMETHOD-ERROR broken cannot bind", "SMETHOD bare 0.0.0.0:443 FORWARD:1 DECLARE:2", "SMETHODS DONE")
		untilStdinCloses()
	case "server environment":
		env, _ := json.Marshal(os.Environ())
		fmt.Fprintln(os.Stderr, string(env))
		say("VERSION 1", "SMETHOD fake 127.0.0.1:1", "SMETHODS DONE")
		untilStdinCloses()
	case "server bad args":
		say("VERSION 1", `SMETHOD fake 127.0.0.1:1 ARGS:a=b\`, "SMETHODS DONE")
		untilStdinCloses()
	case "server with a name":
		say("VERSION 1", "SMETHOD fake localhost:1", "SMETHODS DONE")
		untilStdinCloses()
	case "ext server":
		extServer()

	// A parent, to be killed.
	case "parent":
		parent()
	default:
		if answers, ok := strings.CutPrefix(role, "socks "); ok {
			var list [][]byte
			if json.Unmarshal([]byte(answers), &list) != nil {
				os.Exit(93)
			}
			ready(replying(list))
			untilStdinCloses()
			return
		}
		fmt.Fprintln(os.Stderr, "no such role:", role)
		os.Exit(94)
	}
}

func untilKilledBy(s os.Signal) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, s)
	<-c
}

// extServer is a server with a listener whose every connection it leads to
// the parent's Extended ORPort, with the client's address.
func extServer() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		os.Exit(95)
	}
	file, err := os.ReadFile(os.Getenv("TOR_PT_AUTH_COOKIE_FILE"))
	if err != nil || len(file) != 64 || string(file[:32]) != cookieHeader {
		say("ENV-ERROR cookie file")
		return
	}
	go func() {
		for {
			outside, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer outside.Close()
				inside, err := net.Dial("tcp", os.Getenv("TOR_PT_EXTENDED_SERVER_PORT"))
				if err != nil {
					return
				}
				defer inside.Close()
				inside.SetDeadline(time.Now().Add(patience))
				if err := extClient(inside, cookie(file[32:]), "fake", outside.RemoteAddr().String()); err != nil {
					fmt.Fprintln(os.Stderr, err)
					return
				}
				inside.SetDeadline(time.Time{})
				go func() {
					io.Copy(inside, outside)
					inside.Close()
				}()
				io.Copy(outside, inside)
			}()
		}
	}()
	say("VERSION 1", "SMETHOD fake "+l.Addr().String(), "SMETHODS DONE")
	untilStdinCloses()
}

func command(code uint16, body string) []byte {
	b := binary.BigEndian.AppendUint16(nil, code)
	b = binary.BigEndian.AppendUint16(b, uint16(len(body)))
	return append(b, body...)
}

var errDenied = errors.New("denied")

// extClient is a transport program's side of the whole exchange.
func extClient(c io.ReadWriter, key cookie, transport, addr string) error {
	if err := extAuthenticate(c, key); err != nil {
		return err
	}
	messages := bytes.Join([][]byte{
		command(0x7777, "unknown"),
		command(commandUserAddr, addr),
		command(commandTransport, transport),
		command(commandDone, ""),
	}, nil)
	return extAsk(c, messages)
}

// extAsk sends commands and reads the verdict.
func extAsk(c io.ReadWriter, messages []byte) error {
	if _, err := c.Write(messages); err != nil {
		return err
	}
	var verdict [4]byte
	if _, err := io.ReadFull(c, verdict[:]); err != nil {
		return err
	}
	switch verdict {
	case [4]byte{0x10, 0x00}:
		return nil
	case [4]byte{0x10, 0x01}:
		return errDenied
	}
	return fmt.Errorf("verdict %x", verdict)
}

func extAuthenticate(c io.ReadWriter, key cookie) error {
	var types [2]byte
	if _, err := io.ReadFull(c, types[:]); err != nil {
		return err
	}
	if types != [2]byte{1, 0} {
		return fmt.Errorf("types %x", types)
	}
	var nonce [32]byte
	rand.Read(nonce[:])
	c.Write(append([]byte{1}, nonce[:]...))
	var answer [64]byte
	if _, err := io.ReadFull(c, answer[:]); err != nil {
		return err
	}
	if !bytes.Equal(answer[:32], key.hash(serverHash, nonce[:], answer[32:])) {
		return errors.New("server hash is wrong")
	}
	c.Write(key.hash(clientHash, nonce[:], answer[32:]))
	var status [1]byte
	if _, err := io.ReadFull(c, status[:]); err != nil {
		return err
	}
	if status[0] != 1 {
		return errors.New("not authenticated")
	}
	return nil
}
