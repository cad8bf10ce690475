// Package client is the reader's and the writer's side of an archive: it asks
// all replicas at once, believes what f+1 of them prove under one head, and
// remembers the newest epoch that it has ever accepted. Nothing that a replica
// sends is trusted; what cannot be verified costs its sender this client's ear.
package client

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/wire"
	"github.com/bonafide-archive/bonafide/tree"
	"github.com/bonafide-archive/bonafide/trust"
)

const (
	defaultTimeout = 10 * time.Second
	backoffMin     = 50 * time.Millisecond
	backoffMax     = time.Second
	// hedge is how long one replica is given where any one will do, before
	// the next is asked as well.
	hedge = 250 * time.Millisecond
)

// Peer is one replica as the client sees it. *wire.Client is one. Methods may
// be called concurrently and end with their context.
type Peer interface {
	Answer(ctx context.Context, q wire.AnswerRequest) (archive.Answer, error)
	Proofs(ctx context.Context, head archive.Digest, names []archive.Name) ([]tree.Proof, error)
	ProofRange(ctx context.Context, head archive.Digest, from, to []byte, limit int) (tree.Proof, error)
	Content(ctx context.Context, d archive.Digest, offset int64) (io.ReadCloser, int64, error)
	ContentPart(ctx context.Context, d archive.Digest, offset, n int64) (io.ReadCloser, int64, error)
	Blocks(ctx context.Context, d archive.Digest, page uint64) (archive.BlockList, error)
	Have(ctx context.Context, digests []archive.Digest) ([]bool, error)
	PutContents(ctx context.Context, up archive.Uploads, body io.Reader) error
	PutContent(ctx context.Context, up archive.Upload, size int64, body io.Reader) error
	Partial(ctx context.Context, d archive.Digest, writer archive.KeyID) (uint64, error)
	ResumeContent(ctx context.Context, up archive.Upload, offset uint64, body io.Reader) error
	Add(ctx context.Context, s archive.Submission) (wire.Ack, error)
	Pending(ctx context.Context, n archive.Name) (wire.PendingState, error)
	Status(ctx context.Context) (wire.Status, error)
	History(ctx context.Context, from archive.Epoch, limit int) ([]wire.SignedRecord, error)
	Close()
}

var _ Peer = (*wire.Client)(nil)

// Config says whose client, and how it waits.
type Config struct {
	// Roster is the archive's; all trust begins with it.
	Roster *archive.Roster
	// Key is the writer's; nil: read only.
	Key ed25519.PrivateKey
	// StateDir keeps, for each archive, the newest epoch ever accepted. It may
	// be shared by any number of processes. Empty: kept in memory only.
	StateDir string
	// Timeout bounds one round of answers, and every wait without progress.
	// Zero: 10 seconds.
	Timeout time.Duration
	// Now is the wall clock, used for what is current, never for waiting. Nil:
	// time.Now.
	Now func() time.Time
	// Rand gives nonces. Nil: crypto/rand.
	Rand io.Reader
	// Log takes what may interest an operator. Nil: nothing is logged.
	Log *slog.Logger
	// Progress is told how far hashing, uploads and downloads are, by one
	// caller at a time. May be nil.
	Progress func(Progress)
	// Dial makes the peers. Nil: wire.NewClient.
	Dial func(archive.Replica) Peer
}

// Progress is how far one item is.
type Progress struct {
	Stage   string // "read", "upload", "fetch"; "hold": Replica has Done more bytes of an Add
	Name    archive.Name
	Digest  archive.Digest // of what is fetched, which has no name here
	Replica uint32         // of an upload, a fetch and what it holds
	Done    uint64         // bytes
	Total   uint64         // bytes; 0: unknown
}

// Client asks one archive. Its methods may be called concurrently.
type Client struct {
	Config
	seen     *seen
	replicas []*replica
	places   chan struct{} // for groups of an Add
	slabs    slabs         // for contents that they read
	telling  sync.Mutex    // held by one call of Progress

	mu    sync.Mutex
	order []*replica // quickest last answer first
}

// replica is a roster entry and the way to it.
type replica struct {
	archive.Replica
	peer Peer
	late atomic.Bool // it has held up an Add, and caught up with none since

	spare slabs // for contents that are read again for it
}

// New returns a client of the archive that c names. It does not connect.
func New(c Config) (*Client, error) {
	if c.Roster == nil {
		return nil, fmt.Errorf("client: %w: none given", archive.ErrRoster)
	}
	if err := c.Roster.Check(); err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	c.setDefaults()
	s, err := openSeen(c.StateDir, c.Roster.ID())
	if err != nil {
		return nil, err
	}
	cl := &Client{Config: c, seen: s, places: make(chan struct{}, groups), slabs: newSlabs(readSlabs)}
	for _, m := range c.Roster.Replicas {
		cl.replicas = append(cl.replicas, &replica{Replica: m, peer: c.Dial(m), spare: newSlabs(spareSlabs)})
	}
	cl.order = append(cl.order, cl.replicas...)
	return cl, nil
}

func (c *Config) setDefaults() {
	if c.Timeout <= 0 {
		c.Timeout = defaultTimeout
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Rand == nil {
		c.Rand = rand.Reader
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Dial == nil {
		r, o := c.Roster, wire.Options{Timeout: min(c.Timeout, 5*time.Second)}
		c.Dial = func(m archive.Replica) Peer { return wire.NewClient(m, r, o) }
	}
}

// Close gives up all connections.
func (c *Client) Close() {
	for _, r := range c.replicas {
		r.peer.Close()
	}
}

func (c *Client) tell(p Progress) {
	if c.Progress == nil {
		return
	}
	c.telling.Lock()
	defer c.telling.Unlock()
	c.Progress(p)
}

// nonce draws a fresh one.
func (c *Client) nonce() (n trust.Nonce, err error) {
	if _, err := io.ReadFull(c.Rand, n[:]); err != nil {
		return n, fmt.Errorf("draw nonce: %w", err)
	}
	return n, nil
}

// preferred returns all replicas, those first that are likely to answer soon.
func (c *Client) preferred() []*replica {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]*replica(nil), c.order...)
}

// prefer puts the given replicas, in their order, before all others.
func (c *Client) prefer(rs ...*replica) { c.reorder(rs, true) }

// demote puts r behind all others.
func (c *Client) demote(r *replica) { c.reorder([]*replica{r}, false) }

func (c *Client) reorder(rs []*replica, front bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	moved := make(map[*replica]bool)
	for _, r := range rs {
		moved[r] = true
	}
	var rest []*replica
	for _, r := range c.order {
		if !moved[r] {
			rest = append(rest, r)
		}
	}
	if front {
		c.order = append(append([]*replica(nil), rs...), rest...)
		return
	}
	c.order = append(rest, rs...)
}
