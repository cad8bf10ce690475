package replica

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/wire"
	"github.com/bonafide-archive/bonafide/consensus"
)

// A board is what one update process has to say to its peers, in the order in
// which it says it. Peers follow it; so a late one misses nothing.
type board struct {
	run  string // tells a restarted process's board from the one before
	know watch
	all  []item
}

// item is one thing said.
type item struct {
	kind    byte
	payload []byte
}

// Kinds of items. Those of an attempt name its instance.
const (
	itemBase        = 'e' // be64 epoch || head: the epoch this replica builds on
	itemHello       = 'h' // an answer to a hello, this replica's or another's
	itemCarry       = 'r' // consensus.Carried: the record committed at an earlier tick
	itemJoin        = 'j' // consensus.Join, its own
	itemVoucher     = 'v' // consensus.Voucher, its own
	itemProposal    = 'p' // consensus.ProposalCertificate, its own
	itemBlock       = 'b' // consensus.Block, which its engine decided
	itemPrepare     = '1' // ballot: its prepare vote
	itemReady       = '2' // ballot, no attestation: it has the prepare certificate on disk
	itemCommit      = '3' // ballot: its commit vote
	itemCertificate = 'c' // be32 length || record || certificate, which it holds on disk
)

// Bounds of what is read from a peer.
const (
	maxItem   = maxPhaseFile
	maxBatch  = maxItem + 4<<20
	batchGoal = 1 << 20
	maxItems  = 1 << 12 // of one board
	maxPoll   = 10 * time.Second
)

// maxAsked bounds the requests of one peer under way at once. A correct one asks
// for a board, a piece of each body and fetchAhead pages of a tree.
const maxAsked = 32

const (
	pathHello  = "/v1/phase/hello"
	pathBoard  = "/v1/phase/board"
	pathPiece  = "/v1/phase/piece/"
	headerRun  = "Bonafide-Run"
	runLength  = 32
	retryPause = 100 * time.Millisecond
)

func newBoard(random io.Reader) *board {
	var b [runLength / 2]byte
	if _, err := io.ReadFull(random, b[:]); err != nil {
		rand.Read(b[:]) // never fails
	}
	return &board{run: hex.EncodeToString(b[:])}
}

func (b *board) publish(kind byte, payload []byte) {
	b.know.update(func() { b.all = append(b.all, item{kind, payload}) })
}

// size is how many items have been said.
func (b *board) size() int {
	b.know.Lock()
	defer b.know.Unlock()
	return len(b.all)
}

// since returns the items from the n-th on, a batch at most; it waits for one
// until ctx ends.
func (b *board) since(ctx context.Context, n int) (batch []item) {
	b.know.wait(ctx, func() (bool, error) { return len(b.all) > n, nil })
	b.know.Lock()
	defer b.know.Unlock()
	size := 0
	for ; n < len(b.all) && size < batchGoal; n++ {
		batch = append(batch, b.all[n])
		size += len(b.all[n].payload)
	}
	return batch
}

func encodeBatch(items []item) (b []byte) {
	for _, x := range items {
		b = append(b, x.kind)
		b = binary.BigEndian.AppendUint32(b, uint32(len(x.payload)))
		b = append(b, x.payload...)
	}
	return b
}

func decodeBatch(b []byte) (items []item, err error) {
	for len(b) > 0 {
		if len(b) < 5 {
			return nil, fmt.Errorf("board: %w: cut short", archive.ErrFormat)
		}
		kind, n := b[0], binary.BigEndian.Uint32(b[1:])
		if b = b[5:]; uint64(n) > uint64(len(b)) {
			return nil, fmt.Errorf("board: %w: cut short", archive.ErrFormat)
		}
		items = append(items, item{kind, b[:n:n]})
		b = b[n:]
	}
	return items, nil
}

// A watch is a lock whose holders can wait for what others change under it.
type watch struct {
	sync.Mutex
	changed chan struct{}
}

// update runs f under the lock and wakes all who wait.
func (w *watch) update(f func()) {
	w.Lock()
	defer w.Unlock()
	f()
	if w.changed != nil {
		close(w.changed)
		w.changed = nil
	}
}

// wait returns once cond, called under the lock, holds or fails, or ctx ends.
func (w *watch) wait(ctx context.Context, cond func() (bool, error)) error {
	for {
		w.Lock()
		ok, err := cond()
		if w.changed == nil {
			w.changed = make(chan struct{})
		}
		changed := w.changed
		w.Unlock()
		if ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// peer is another replica, as the goroutine that follows it sees it.
type peer struct {
	archive.Replica
	client  *wire.Client
	run     string // of the board that is being read
	next    int    // first item not yet read
	greeted string // run of the process that has answered our hello

	greetings int   // how often it has answered, whatever its run
	heard     int   // items of the board that were read when it last did
	shown     hello // the newest answer of its that our board shows
}

// follow reads the boards of all peers, from their beginning, and hands each
// item to take, until the returned function is called. A peer of which take
// refuses an item has failed and is read no further.
func (p *phase) follow(ctx context.Context, take func(context.Context, *peer, item) error) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var all sync.WaitGroup
	for _, x := range p.peers {
		x.next = 0
		all.Go(func() { p.followPeer(ctx, x, take) })
	}
	return func() { cancel(); all.Wait() }
}

func (p *phase) followPeer(ctx context.Context, x *peer, take func(context.Context, *peer, item) error) {
	for ctx.Err() == nil {
		err := p.pull(ctx, x, take)
		var bad *badItem
		switch {
		case errors.As(err, &bad):
			p.log.Warn("peer failed: not followed any further", "peer", x.ID, "err", err)
			return
		case err != nil && ctx.Err() == nil:
			p.log.Debug("peer does not answer", "peer", x.ID, "err", err)
			pause(ctx, retryPause)
		}
	}
}

// badItem is an item that no correct replica says.
type badItem struct {
	kind byte
	err  error
}

func (e *badItem) Error() string { return fmt.Sprintf("item %q: %v", e.kind, e.err) }
func (e *badItem) Unwrap() error { return e.err }

// pull reads one batch of a peer's board.
func (p *phase) pull(ctx context.Context, x *peer, take func(context.Context, *peer, item) error) error {
	if x.greeted == "" {
		if err := p.greet(ctx, x); err != nil {
			return err
		}
	}
	items, err := p.readBoard(ctx, x)
	if err != nil {
		return err
	}
	for _, it := range items {
		if x.next++; x.next > maxItems {
			return &badItem{it.kind, errors.New("too many items")}
		}
		if err := take(ctx, x, it); err != nil && ctx.Err() == nil {
			return &badItem{it.kind, err}
		}
	}
	return nil
}

func (p *phase) readBoard(ctx context.Context, x *peer) ([]item, error) {
	ctx, cancel := context.WithTimeout(ctx, maxPoll+p.Timeout)
	defer cancel()
	path := fmt.Sprintf("%s?run=%s&after=%d", pathBoard, x.run, x.next)
	resp, err := p.request(ctx, x, http.MethodGet, path, nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	run := resp.Header.Get(headerRun)
	if len(run) != runLength {
		return nil, fmt.Errorf("board: %w: no run", archive.ErrFormat)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxBatch+1))
	if err != nil || int64(len(b)) > maxBatch {
		return nil, fmt.Errorf("board: %d bytes: %w", len(b), err)
	}
	if run != x.greeted {
		x.greeted = "" // a new process: it does not know us
	}
	if run != x.run {
		x.run, x.next, x.heard = run, 0, 0
	}
	return decodeBatch(b)
}

// request sends a request to a peer's update process. A peer that turns out to
// be in its service phase is asked for its history instead.
func (p *phase) request(ctx context.Context, x *peer, method, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, x.client.URL(path), body)
	if err != nil {
		return nil, err
	}
	resp, err := x.client.HTTP().Do(req)
	if err != nil {
		return nil, err
	}
	if id, err := wire.PeerID(resp.TLS, p.Roster); err != nil || id != x.ID {
		resp.Body.Close()
		err := p.fetchHistory(ctx, x)
		p.setAway(x.ID, true) // after what it has to show: too many away end the phase
		return nil, errors.Join(errors.New("in its service phase"), err)
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fmt.Errorf("HTTP status %d", resp.StatusCode)
	}
	return resp, nil
}

// server is the update process's side of the service address.
type server struct {
	http *http.Server
	done chan struct{}
}

// listen opens the service address to peers, and to nobody else.
func (p *phase) listen(ctx context.Context) error {
	config, err := wire.MutualTLS(p.key, p.Roster)
	if err != nil {
		return err
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", p.Listen)
	if err != nil {
		return fmt.Errorf("listen for peers: %w", err)
	}
	s := &server{done: make(chan struct{}), http: &http.Server{
		Handler: p.bounded(p.handler()), TLSConfig: config,
		ReadHeaderTimeout: p.Timeout, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		HTTP2:       &http.HTTP2Config{MaxConcurrentStreams: maxAsked},
		ConnState:   newDoor(p.Roster).state,
		ErrorLog:    slog.NewLogLogger(p.log.Handler(), slog.LevelDebug),
		BaseContext: func(net.Listener) context.Context { return ctx },
	}}
	go func() {
		defer close(s.done)
		s.http.ServeTLS(l, "", "")
	}()
	p.serving = s
	return nil
}

func (s *server) close() {
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	if s.http.Shutdown(ctx) != nil {
		s.http.Close()
	}
	<-s.done
}

// bounded lets each replica have maxAsked requests under way at next.
func (p *phase) bounded(next http.Handler) http.Handler {
	gates := make(map[uint32]*gate)
	for _, m := range p.members {
		gates[m.ID] = newGate(next, maxAsked)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from, err := wire.PeerID(r.TLS, p.Roster)
		if err != nil {
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
		gates[from].ServeHTTP(w, r)
	})
}

func (p *phase) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+pathHello, p.serveHello)
	mux.HandleFunc("GET "+pathBoard, p.serveBoard)
	mux.HandleFunc("GET "+pathPiece+"{digest}", p.servePiece)
	mux.Handle("/", p.history())
	return mux
}

func (p *phase) serveBoard(w http.ResponseWriter, r *http.Request) {
	after, err := strconv.Atoi(r.FormValue("after"))
	if err != nil || after < 0 || r.FormValue("run") != p.board.run {
		after = 0
	}
	if from, err := wire.PeerID(r.TLS, p.Roster); err == nil {
		p.know.update(func() { p.read[from] = after })
	}
	ctx, cancel := context.WithTimeout(r.Context(), maxPoll)
	defer cancel()
	b := encodeBatch(p.board.since(ctx, after))
	w.Header().Set(headerRun, p.board.run)
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.Write(b)
}

func (p *phase) servePiece(w http.ResponseWriter, r *http.Request) {
	d, err := archive.ParseDigest(r.PathValue("digest"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	f, err := os.Open(p.dir.piecePath(d))
	if err != nil {
		http.NotFound(w, r)
		return
	}
	defer f.Close()
	io.Copy(w, io.LimitReader(f, consensus.MaxPiece))
}

// fetchPiece brings a piece from x into the phase directory.
func (p *phase) fetchPiece(ctx context.Context, x *peer, want consensus.Piece) error {
	ctx, cancel := context.WithTimeout(ctx, p.patience())
	defer cancel()
	resp, err := p.request(ctx, x, http.MethodGet, pathPiece+archive.Digest(want.Digest).String(), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var b strings.Builder
	if _, err := io.Copy(&b, io.LimitReader(resp.Body, int64(want.Size)+1)); err != nil {
		return err
	}
	if consensus.NewPiece([]byte(b.String())) != want {
		return fmt.Errorf("piece %w", archive.ErrIntegrity)
	}
	return p.durable("piece fetched", func() error { return p.dir.putPiece([]byte(b.String())) })
}
