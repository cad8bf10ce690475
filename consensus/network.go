package consensus

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"time"

	cmtconfig "github.com/cometbft/cometbft/config"
	cmt "github.com/cometbft/cometbft/consensus"
	cmted25519 "github.com/cometbft/cometbft/crypto/ed25519"
	"github.com/cometbft/cometbft/p2p"
	"github.com/cometbft/cometbft/types"
	"github.com/cometbft/cometbft/version"
)

// network connects the engine with the other members and with nobody else.
type network struct {
	config    Config
	sw        *p2p.Switch
	transport *p2p.MultiplexTransport
	listening bool
}

func newNetwork(c Config, private *key, reactor *cmt.Reactor) *network {
	settings := p2pConfig()
	key := p2p.NodeKey{PrivKey: private}
	self := nodeInfo(c, key.ID(), reactor)
	n := &network{config: c, transport: p2p.NewMultiplexTransport(self, key, p2p.MConnConfig(settings))}
	p2p.MultiplexTransportMaxIncomingConnections(maxIncoming)(n.transport)
	n.sw = p2p.NewSwitch(settings, n.transport, p2p.SwitchPeerFilters(onlyMembers(c.Members)))
	n.sw.SetLogger(chatter{log: c.Log})
	n.sw.AddReactor("CONSENSUS", reactor)
	n.sw.SetNodeInfo(self)
	n.sw.SetNodeKey(&key)
	n.sw.SetAddrBook(noBook{})
	return n
}

// maxIncoming bounds connections that are open, also those of strangers, which
// have the engine's handshake timeout of a few seconds to show a member's key.
const maxIncoming = 256

func p2pConfig() *cmtconfig.P2PConfig {
	k := cmtconfig.DefaultP2PConfig()
	k.PexReactor = false
	k.AllowDuplicateIP = true
	k.MaxNumInboundPeers = 0 // members are unconditional, others not wanted
	k.FlushThrottleTimeout = gossip
	k.MaxPacketMsgPayloadSize = 1 << 14
	k.SendRate, k.RecvRate = 100<<20, 100<<20
	return k
}

func nodeInfo(c Config, id p2p.ID, reactor *cmt.Reactor) p2p.DefaultNodeInfo {
	self := p2p.DefaultNodeInfo{
		ProtocolVersion: p2p.NewProtocolVersion(version.P2PProtocol, version.BlockProtocol, 0),
		DefaultNodeID:   id,
		ListenAddr:      "127.0.0.1:0", // peers know where to dial
		Network:         c.chainID(),
		Moniker:         fmt.Sprint(c.Self),
	}
	for _, ch := range reactor.GetChannels() {
		self.Channels = append(self.Channels, ch.ID)
	}
	return self
}

func peerID(key ed25519.PublicKey) p2p.ID { return p2p.PubKeyToID(cmted25519.PubKey(key)) }

func onlyMembers(members []Member) p2p.PeerFilterFunc {
	known := map[p2p.ID]bool{}
	for _, m := range members {
		known[peerID(m.Key)] = true
	}
	return func(_ p2p.IPeerSet, p p2p.Peer) error {
		if !known[p.ID()] {
			return fmt.Errorf("peer %v is no member", p.ID())
		}
		return nil
	}
}

func (n *network) start(ctx context.Context) error {
	for _, m := range n.others() {
		if err := n.sw.AddUnconditionalPeerIDs([]string{string(peerID(m.Key))}); err != nil {
			return err
		}
	}
	self, _ := member(n.config.Members, n.config.Self)
	addr, err := netAddress(self)
	if err != nil {
		return err
	}
	if err := n.transport.Listen(*addr); err != nil {
		return err
	}
	n.listening = true
	if err := n.sw.Start(); err != nil {
		return err
	}
	for _, m := range n.others() {
		go n.keepDialling(ctx, m)
	}
	return nil
}

func (n *network) others() (out []Member) {
	for _, m := range n.config.Members {
		if m.ID != n.config.Self {
			out = append(out, m)
		}
	}
	return out
}

func netAddress(m Member) (*p2p.NetAddress, error) {
	return p2p.NewNetAddressString(p2p.IDAddressString(peerID(m.Key), m.Address))
}

// keepDialling connects to m, again whenever the connection is gone. Two that
// dial each other at once may each refuse the other, so the higher one begins.
func (n *network) keepDialling(ctx context.Context, m Member) {
	wait := time.Duration(0)
	if n.config.Self < m.ID {
		wait = dialLate
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		if addr, err := netAddress(m); err == nil {
			_ = n.sw.DialPeerWithAddress(addr) // also when connected: then at no cost
		}
		wait = dialAgain
	}
}

const (
	dialLate  = 1500 * time.Millisecond
	dialAgain = 100 * time.Millisecond
)

// past says whether every connected peer is beyond height.
func (n *network) past(height int64) bool {
	for _, p := range n.sw.Peers().List() {
		s, ok := p.Get(types.PeerStateKey).(*cmt.PeerState)
		if ok && s.GetHeight() <= height {
			return false
		}
	}
	return true
}

func (n *network) stop() {
	_ = n.sw.Stop()
	if n.listening {
		_ = n.transport.Close()
	}
}

// noBook remembers no addresses: the members' are configured.
type noBook struct{}

func (noBook) AddAddress(_, _ *p2p.NetAddress) error { return nil }
func (noBook) AddPrivateIDs([]string)                {}
func (noBook) AddOurAddress(*p2p.NetAddress)         {}
func (noBook) OurAddress(*p2p.NetAddress) bool       { return false }
func (noBook) MarkGood(p2p.ID)                       {}
func (noBook) RemoveAddress(*p2p.NetAddress)         {}
func (noBook) HasAddress(*p2p.NetAddress) bool       { return false }
func (noBook) Save()                                 {}
