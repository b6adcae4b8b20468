package inbound

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ptgate/routes"
)

// A plain request on which nothing moves for limits.idle ends as a tunnel does, whoever is
// the silent one.
func TestSilence(t *testing.T) {
	const idle = 20 * time.Second
	const get = "GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n"
	const put = "PUT http://a.example/ HTTP/1.1\r\nHost: a.example\r\n"
	pause := func() { <-time.After(idle - time.Second) }
	for _, tt := range []struct {
		name     string
		request  []string // with a pause before each but the first
		response []string
		deaf     bool // the client reads nothing
		want     string
		outcome  string
	}{
		{"no response", []string{get}, nil, false, "HTTP/1.1 504 ", "refused timeout"},
		{"half a head of a response", []string{get}, []string{"HTTP/1.1 200 OK\r\n"}, false, "HTTP/1.1 504 ", "refused timeout"},
		{"slow, but never silent", []string{put + "Content-Length: 3\r\n\r\n", "a", "b", "c"},
			[]string{"HTTP/1.1 103 Early Hints\r\n\r\n", "HTTP/1.1 200 OK\r\n", "Content-Length: 2\r\n\r\n", "o", "k"}, false, "ok", ""},
		{"slow chunks", []string{put + "Transfer-Encoding: chunked\r\n\r\n", "1\r\n", "a", "\r\n0\r\n", "\r\n"},
			[]string{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "2\r\n", "o", "k\r\n", "0\r\n", "\r\n"}, false, "0\r\n\r\n", ""},
		{"content with a length that stops", []string{put + "Content-Length: 3\r\n\r\na", "b"}, nil, false, "HTTP/1.1 408 ", "refused slow"},
		{"chunks that stop", []string{put + "Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n", "1\r\n"}, nil, false, "HTTP/1.1 408 ", "refused slow"},
		{"a response with a length that stops", []string{get}, []string{"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", "a"}, false, "\r\n\r\na", ""},
		{"a response of chunks that stops", []string{get}, []string{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "3\r\na"}, false, "3\r\na", ""},
		{"a response up to the end that stops", []string{get}, []string{"HTTP/1.1 200 OK\r\n\r\n", "a"}, false, "\r\n\r\na", ""},
		{"a client that does not read", []string{get}, []string{"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n"}, true, "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ln, dialled := make(memory), make(chan net.Conn, 1)
				g := startOn(t, ln, HTTP, dialFunc(func(context.Context, routes.Target) (net.Conn, error) {
					here, there := net.Pipe()
					dialled <- there
					return here, nil
				}), func(s *Settings, _ *Config) { s.Allow, s.Idle = nil, idle })
				client, there := net.Pipe()
				ln <- there
				begin := time.Now()
				moved := 0 // pieces
				go func() {
					for i, piece := range tt.request {
						if i > 0 {
							pause()
						}
						io.WriteString(client, piece)
					}
				}()
				go func() {
					origin := <-dialled
					go io.Copy(io.Discard, origin)
					<-time.After(time.Duration(len(tt.request)-1) * (idle - time.Second))
					for _, piece := range tt.response {
						pause()
						io.WriteString(origin, piece)
					}
				}()
				moved = len(tt.request) + len(tt.response) - 1
				if tt.deaf {
					<-time.After(time.Duration(moved)*(idle-time.Second) + 2*idle)
					synctest.Wait()
				}
				got, err := io.ReadAll(client)
				took := time.Since(begin)
				page := strings.HasPrefix(tt.want, "HTTP")
				if page && !strings.HasPrefix(string(got), tt.want) || !page && !strings.HasSuffix(string(got), tt.want) || tt.deaf && len(got) > 0 {
					t.Errorf("got %q, %v; want %q", got, err, tt.want)
				}
				least := time.Duration(moved) * (idle - time.Second)
				most := least + idle + 2*idle/looks + lastAnswer
				if tt.deaf {
					most = least + 2*idle + lastAnswer
				}
				if took < least || took > most {
					t.Errorf("it took %v, want from %v on", took, least)
				}
				client.Close()
				g.end(t)
				m := g.counted()
				if tt.outcome != "" && m[tt.outcome] != 1 || m["panicked"] != 0 || tt.outcome == "" && m["refused timeout"]+m["refused slow"] > 0 {
					t.Errorf("counted %v, want %q", m, tt.outcome)
				}
			})
		})
	}
}

// A kept is a client and an origin whose connections wait for the second request.
type kept struct {
	*gate
	client, origin net.Conn
	in, asked      *bufio.Reader // what the client gets, and the origin
	dialled        <-chan net.Conn
}

func startKept(t *testing.T, idle time.Duration) *kept {
	g, client, dialled := inMemory(t)
	set := *g.set
	set.Idle = idle
	g.now.Store(&set)
	k := &kept{gate: g, client: client, in: bufio.NewReader(client), dialled: dialled}
	go io.WriteString(client, plainRequest)
	k.origin = <-dialled
	k.asked = bufio.NewReader(k.origin)
	if _, err := http.ReadRequest(k.asked); err != nil {
		t.Fatal(err)
	}
	go io.WriteString(k.origin, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	if resp, err := http.ReadResponse(k.in, nil); err != nil || resp.StatusCode != 200 {
		t.Fatalf("got %v, %v", resp, err)
	}
	return k
}

// The silence of an origin whose connection was kept is no stale connection: the request is
// not sent again, and the client hears of it.
func TestSilenceOfKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const idle = 8 * time.Second
		k := startKept(t, idle)
		begin := time.Now()
		go io.WriteString(k.client, plainRequest)
		if _, err := http.ReadRequest(k.asked); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(k.in, nil)
		if took := time.Since(begin); err != nil || resp.StatusCode != 504 || took < idle || took > idle+2*idle/looks {
			t.Errorf("got %v, %v after %v", resp, err, took)
		}
		select {
		case <-k.dialled:
			t.Error("the request was sent again")
		default:
		}
		k.client.Close()
		k.end(t)
	})
}

// A connection that waits for its next request waits no longer than limits.idle.
func TestSilenceBetweenRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const idle = 7 * time.Second
		k := startKept(t, idle)
		begin := time.Now()
		if _, err := k.in.ReadByte(); err != io.EOF || time.Since(begin) > 2*idle {
			t.Errorf("the client was left after %v: %v", time.Since(begin), err)
		}
		if _, err := k.origin.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("the origin: %v", err)
		}
		k.end(t)
	})
}
