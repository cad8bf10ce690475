package replica

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/netutil"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/wire"
	"github.com/bonafide-archive/bonafide/trust"
)

// Bounds of what a service process takes on at once.
const (
	maxConns    = 1024
	maxRequests = 4096 // of all kinds, on all connections
	maxAnswers  = 2048 // waiting for the MAS, which answers all at once
	maxUploads  = 32
	maxAdds     = 32
	maxAsks     = 8 // which contents are here
)

// service is the service process of one replica. Its MAS cannot change while it
// runs; statement is what it said at the start.
type service struct {
	Config
	archive   archive.Digest
	statement trust.Statement
	store     *Store
	pending   *Pending
	peers     []*wire.Client
	shelf     shelf
	remains   shelf // the tree while it is damaged
	shut      error // why nothing is answered from any tree, nil if something is

	answers, uploads, adds, asks chan struct{} // places for requests
	batches                      chan []byte   // likewise, each with its buffer
	partials                     partials

	cleaning sync.RWMutex  // held to write while contents nobody wants are removed
	wake     chan struct{} // the tree must be restored
	doubts   chan struct{} // the device failed somebody
	fatal    chan error    // the process must start anew
	auditing sync.Mutex    // held by an audit for the operator
	unsound  atomic.Bool   // the last audit left something damaged
}

// Serve runs the service process of a replica until ctx ends: it answers Gets
// with attestations of its MAS, takes Adds, serves peers, and audits and repairs
// what it holds. It refuses to start with ErrUpdateMode while the MAS is in
// update mode.
func Serve(ctx context.Context, c Config) error {
	s, err := newService(ctx, c)
	if err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	defer s.close()
	if err := s.run(ctx); err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

func newService(ctx context.Context, c Config) (*service, error) {
	c, err := c.filled()
	if err != nil {
		return nil, err
	}
	st, err := c.attest(ctx)
	if err != nil {
		return nil, err
	}
	if st.Mode != trust.ModeService {
		return nil, ErrUpdateMode
	}
	store, err := OpenStore(c.StoreDir(), c.Roster)
	if err != nil {
		return nil, err
	}
	pending, err := store.Pending()
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	s := &service{
		Config: c, archive: c.Roster.ID(), statement: st, store: store, pending: pending, peers: c.peers(nil),
		answers: make(chan struct{}, maxAnswers), uploads: make(chan struct{}, maxUploads), adds: make(chan struct{}, maxAdds),
		asks: make(chan struct{}, maxAsks), batches: make(chan []byte, maxBatches),
		wake: make(chan struct{}, 1), doubts: make(chan struct{}, 1), fatal: make(chan error, 1),
	}
	for range maxBatches {
		s.batches <- nil
	}
	s.shelf.withdraw(s.whyNone())
	s.shut = s.whyShut()
	s.remains.withdraw(errTreeDamaged)
	if pending.damage != nil {
		s.Log.Warn("the pending buffer was damaged; kept what could be read of it", "names", pending.Total().Names, "because", pending.damage)
	}
	if err := errors.Join(store.ClearTemp(), s.openPartials()); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// whyNone returns why there is no tree to answer from at the start.
func (s *service) whyNone() error {
	slots := s.statement.Slots
	switch e, _ := heldEpoch(s.Roster, s.statement); {
	case e > 0:
		return wire.Errorf(wire.CodeUnavailable, "the tree is being checked")
	case slots.Archive != [32]byte{} && archive.Digest(slots.Archive) != s.archive:
		return wire.Errorf(wire.CodeNoEpoch, "the trusted device holds the head of another archive")
	}
	return wire.Errorf(wire.CodeNoEpoch, "no epoch yet: the first update phase is due %s", s.due().Format(time.RFC3339))
}

// whyShut returns why no client would believe what this device attests, nil if they
// do: its counter does not stand at the epoch of its head.
func (s *service) whyShut() error {
	e, _ := heldEpoch(s.Roster, s.statement)
	if e == 0 || s.statement.Counter == uint64(e) {
		return nil
	}
	return wire.Errorf(wire.CodeUnavailable, "the epoch counter stands at %d, the head at epoch %d; an update phase must mend that", s.statement.Counter, e)
}

func (s *service) close() {
	s.shelf.withdraw(errEnded)
	s.remains.withdraw(errEnded)
	closeAll(s.peers)
	if err := s.store.Close(); err != nil {
		s.Log.Error("close store", "error", err)
	}
}

// due returns when the next update phase is scheduled.
func (s *service) due() time.Time { return s.Roster.Schedule.Next(s.Now()) }

// run listens on the service address and on the control socket, and keeps the
// store in repair beside.
func (s *service) run(ctx context.Context) error {
	public, err := s.listen()
	if err != nil {
		return err
	}
	control, err := wire.ListenUnix(filepath.Join(s.Dir, runDir), serviceSocket)
	if err != nil {
		public.Close()
		return err
	}
	requests, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	work, stop := context.WithCancel(ctx)
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { s.keep(work) })
	wg.Go(func() { s.watchDevice(work) })
	errs := make(chan error, 2)
	door := newGate(s.handler(), maxRequests)
	web, ctl := s.webServer(requests, door), s.controlServer(work)
	go func() { errs <- web.ServeTLS(public, "", "") }()
	go func() { errs <- ctl.Serve(control) }()
	s.Log.Info("serving", "address", s.Listen, "epoch", s.statement.Slots.Epoch)
	select {
	case err = <-errs:
	case err = <-s.fatal:
	case <-ctx.Done():
	}
	stop()
	door.close(shutdownGrace)
	cut()
	flush(web)
	return errors.Join(err, web.Close(), ctl.Close())
}

// shutdownGrace is how long requests under way have when the service ends,
// flushGrace how long their last bytes have to leave.
const shutdownGrace, flushGrace = time.Second, 100 * time.Millisecond

func flush(web *http.Server) {
	ctx, cancel := context.WithTimeout(context.Background(), flushGrace)
	defer cancel()
	web.Shutdown(ctx) // what is left is cut off by Close
}

func (s *service) listen() (net.Listener, error) {
	l, err := net.Listen("tcp", s.Listen)
	if err != nil {
		return nil, err
	}
	return wire.ReadAhead(netutil.LimitListener(l, maxConns)), nil
}

func (s *service) webServer(ctx context.Context, h http.Handler) *http.Server {
	tlsConfig, err := wire.ServiceTLS(s.ServiceKey)
	if err != nil {
		panic("replica: service key: " + err.Error())
	}
	return &http.Server{
		Handler:           h,
		TLSConfig:         tlsConfig,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: 128},
		ErrorLog:          slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug),
	}
}

// handler routes the requests of clients and peers.
func (s *service) handler() http.Handler {
	p := newPeerHandler(s.store, s, s.Log)
	mux := http.NewServeMux()
	mux.Handle("/", PeerHandler(s.store, s, s.Log))
	mux.HandleFunc("GET "+wire.PathTree, p.replying(p.treeFile))
	mux.HandleFunc("POST "+wire.PathAnswer, p.replying(s.answer))
	mux.HandleFunc("PUT "+wire.PathContent+"{digest}", p.replying(s.putContent))
	mux.HandleFunc("GET "+wire.PathPartial+"{digest}", p.replying(s.partial))
	mux.HandleFunc("POST "+wire.PathBatch, p.replying(s.putContents))
	mux.HandleFunc("POST "+wire.PathHave, p.replying(s.have))
	mux.HandleFunc("POST "+wire.PathAdd, p.replying(s.add))
	mux.HandleFunc("GET "+wire.PathPending, p.replying(s.isPending))
	mux.HandleFunc("GET "+wire.PathStatus, p.replying(s.sendStatus))
	return cleanPath(mux)
}

// Lend implements Trees.
func (s *service) Lend() (*Lent, func(), error) {
	if s.shut != nil {
		return nil, nil, s.shut
	}
	return s.shelf.Lend()
}

// Damaged takes a tree that gave a wrong proof off the shelf, and has it
// repaired.
func (s *service) Damaged(l *Lent, err error) {
	if s.shelf.withdrawIf(l, errTreeDamaged) {
		s.Log.Error("the tree gave a wrong proof; repairing it", "error", err)
		kick(s.wake)
	}
}

// die ends the process: whoever started it starts it again.
func (s *service) die(err error) {
	select {
	case s.fatal <- err:
	default:
	}
}

var errEnded = wire.Errorf(wire.CodeUnavailable, "the service phase has ended")

// kick wakes who waits for c.
func kick(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// enter takes a place, or fails when the request ends before there is one.
func enter(ctx context.Context, places chan struct{}) (leave func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	select {
	case places <- struct{}{}:
		return func() { <-places }, nil
	case <-ctx.Done():
		return nil, wire.Errorf(wire.CodeUnavailable, "too busy")
	}
}

// answer answers a Get: a proof from the tree, the record and certificate that
// it leads to, and an attestation over the client's nonce. All is checked as the
// client will before it is sent.
func (s *service) answer(w http.ResponseWriter, r *http.Request) error {
	q, err := readRequest(w, r)
	if err != nil {
		return err
	}
	leave, err := enter(r.Context(), s.answers)
	if err != nil {
		return err
	}
	defer leave()
	lent, release, err := s.Lend()
	if err != nil {
		return err
	}
	defer release()
	proof, err := lent.answer(q)
	if err != nil {
		s.Damaged(lent, err)
		return errTreeDamaged
	}
	att, err := s.attestHead(r.Context(), lent.Record, q.Nonce)
	if err != nil {
		return err
	}
	wire.WriteJSON(w, archive.NewAnswer(s.ID, lent.Record, lent.Certificate, att, proof))
	return nil
}

func readRequest(w http.ResponseWriter, r *http.Request) (wire.AnswerRequest, error) {
	b, err := readBody(w, r, wire.MaxRequest)
	if err != nil {
		return wire.AnswerRequest{}, err
	}
	q, err := wire.ParseAnswerRequest(b)
	if err != nil {
		return q, badRequest(err)
	}
	return q, nil
}

// attestHead returns an attestation over a client's nonce that rec is the head,
// in service mode. An attestation made in update mode, where a nonce may be a
// vote, never leaves here.
func (s *service) attestHead(ctx context.Context, rec archive.EpochRecord, nonce trust.Nonce) (trust.Attestation, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	att, err := s.MAS.Lookup(ctx, nonce)
	if err == nil {
		_, err = archive.VerifyHead(s.Roster, rec, archive.Attested{Replica: s.ID, Attestation: att}, nonce)
	}
	if err != nil {
		kick(s.doubts)
		s.Log.Error("the trusted device does not vouch for the head", "error", err)
		return nil, wire.Errorf(wire.CodeUnavailable, "the trusted device does not vouch for the head")
	}
	return att, nil
}

// sendStatus says how the replica sees itself.
func (s *service) sendStatus(w http.ResponseWriter, _ *http.Request) error {
	wire.WriteJSON(w, s.status())
	return nil
}

func (s *service) status() wire.Status {
	total, st := s.pending.Total(), s.statement
	out := wire.Status{
		Replica: s.ID, Archive: s.archive, Phase: "service", Mode: st.Mode.String(), Profile: s.MAS.Profile(),
		Pending: total.Names, PendingBytes: total.Bytes, Tick: st.Slots.Tick, Counts: st.Counts.String(),
		Next: s.due(), Damaged: s.unsound.Load(),
	}
	e, head := heldEpoch(s.Roster, st)
	out.Epoch, out.Head = e, head
	if rec, err := heldRecord(s.store, e, head); err == nil && e > 0 {
		due := rec.Due(s.Roster.Schedule)
		out.Root, out.Names, out.Last = archive.Digest(rec.Root), rec.Names, rec.Time
		out.Overdue = s.Now().After(due.Add(s.Roster.Limits.Phase.Std()))
	}
	none := s.shelf.reason()
	out.Damaged = out.Damaged || errors.Is(none, &wire.Error{Code: wire.CodeDamaged})
	if why := cmp.Or(s.shut, none); why != nil {
		out.Note = note(why)
	}
	return out
}

// note returns what a status shows of the reason for having no tree.
func note(err error) string {
	var e *wire.Error
	if errors.As(err, &e) {
		return e.Message
	}
	return err.Error()
}
