package session

import (
	"context"
	"maps"
	"slices"
	"time"
)

// newsGrace is how long a box that stops waits for a gateway that was told of news.
const newsGrace = 2 * time.Second

// news is what the far end has said of its news in one session.
type news struct {
	hears bool          // the gateway understands it
	said  uint64        // the serial that was said last
	at    time.Time     // when
	has   uint64        // the serial that the gateway has
	heard chan struct{} // closed when has changes; nil: nobody waits
}

// Tell says to all gateways that there are news with that serial. Those of earlier calls
// have smaller ones. It does not wait.
func (s *Server) Tell(serial uint64) {
	s.serial.Store(serial)
	s.mu.Lock()
	all := slices.Collect(maps.Values(s.sessions))
	s.mu.Unlock()
	for _, v := range all {
		v.mu.Lock()
		v.tell()
		v.mu.Unlock()
	}
}

// tell says the serial of the news if the gateway has not heard it. The caller holds mu.
func (v *served) tell() {
	if serial := v.server.serial.Load(); v.told.hears && v.told.said < serial && v.err == nil {
		v.told.said, v.told.at = serial, time.Now()
		v.control(nil, frame{kind: frameNews, id: serial})
	}
}

// news implements owner.
func (v *served) news(serial uint64) error {
	if serial > v.told.said {
		return broken("news that nobody has told")
	}
	v.told.has = max(v.told.has, serial)
	if v.told.heard != nil {
		close(v.told.heard)
		v.told.heard = nil
	}
	return nil
}

// AwaitNews waits until the gateways of the group have the news that they were told of.
// It does not wait for those that were told long ago, nor after the end of ctx.
func (g *Group) AwaitNews(ctx context.Context) {
	for _, v := range g.all() {
		v.awaitNews(ctx)
	}
}

func (v *served) awaitNews(ctx context.Context) {
	for {
		v.mu.Lock()
		left := newsGrace - time.Since(v.told.at)
		if v.told.has == v.told.said || left <= 0 || v.err != nil {
			v.mu.Unlock()
			return
		}
		if v.told.heard == nil {
			v.told.heard = make(chan struct{})
		}
		heard := v.told.heard
		v.mu.Unlock()
		t := time.NewTimer(left)
		select {
		case <-heard:
		case <-v.over:
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return
		}
		t.Stop()
	}
}

// news implements owner.
func (v *owned) news(serial uint64) error {
	if serial <= v.told {
		return nil
	}
	v.told = serial
	if v.c.o.News != nil {
		v.c.o.News(v.box, serial)
	}
	return nil
}

// Has says to a box that its news with that serial are here.
func (c *Client) Has(box Box, serial uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, v := range c.sessions {
		if v.box == box && v.told == serial {
			v.control(nil, frame{kind: frameNews, id: serial})
		}
	}
}
