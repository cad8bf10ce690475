package replica

import (
	"crypto/tls"
	"net"
	"net/http"
	"slices"
	"sync"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/wire"
)

// Bounds of the connections to an update process.
const (
	maxStrangers = 256 // that have not shown a key yet
	maxOfPeer    = 16  // of one replica
)

// door bounds the connections to an update process. Whoever comes is let in, in
// the place of the one that has stood there longest without showing a replica's
// key: so a flood keeps out no replica that shows its key at once, and takes no
// descriptors that the phase needs. A replica's own connections are bounded
// alike. Its state is an http.Server's ConnState.
type door struct {
	roster             *archive.Roster
	strangers, ofPeers int // at most

	mu    sync.Mutex
	come  []net.Conn            // strangers, oldest first
	peers map[uint32][]net.Conn // oldest first
}

func newDoor(r *archive.Roster) *door {
	return &door{roster: r, strangers: maxStrangers, ofPeers: maxOfPeer, peers: make(map[uint32][]net.Conn)}
}

func (d *door) state(c net.Conn, s http.ConnState) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch s {
	case http.StateNew:
		d.come = noMoreThan(append(d.come, c), d.strangers)
	case http.StateActive:
		d.admit(c)
	case http.StateClosed, http.StateHijacked:
		d.come = without(d.come, c)
		for id, all := range d.peers {
			d.peers[id] = without(all, c)
		}
	}
}

// admit counts a connection, whose key the handshake has checked, as its
// replica's.
func (d *door) admit(c net.Conn) {
	t, ok := c.(*tls.Conn)
	if !ok || !slices.Contains(d.come, c) {
		return // known already, or shown out
	}
	d.come = without(d.come, c)
	cs := t.ConnectionState()
	if id, err := wire.PeerID(&cs, d.roster); err == nil {
		d.peers[id] = noMoreThan(append(d.peers[id], c), d.ofPeers)
	}
}

// noMoreThan shows out the oldest of the connections beyond n.
func noMoreThan(all []net.Conn, n int) []net.Conn {
	for ; len(all) > n; all = all[1:] {
		if t, ok := all[0].(*tls.Conn); ok {
			t.NetConn().Close() // without a word: nobody waits until it is taken
		}
	}
	return all
}

func without(all []net.Conn, c net.Conn) []net.Conn {
	return slices.DeleteFunc(all, func(x net.Conn) bool { return x == c })
}
