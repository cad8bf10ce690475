package replica

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/wire"
	"github.com/bonafide-archive/bonafide/tree"
	"github.com/bonafide-archive/bonafide/tree/boltstore"
)

// Trees lends the tree that a process answers from.
type Trees interface {
	// Lend returns the current tree with the record and certificate that it
	// belongs to. The tree stays open until release is called. The error is a
	// *wire.Error if it is meant for the peer. If there is a method
	// Damaged(*Lent, error), it hears of a tree that gave a wrong proof.
	Lend() (l *Lent, release func(), err error)
}

// Lent is a tree with what vouches for it.
type Lent struct {
	Tree        *boltstore.Store
	Record      archive.EpochRecord
	Certificate archive.Certificate
	Head        archive.Digest // of Record
}

// PeerHandler serves what both phases serve: history, contents to read, and
// proofs from the tree that trees lends. It bounds the time of each request.
func PeerHandler(store *Store, trees Trees, log *slog.Logger) http.Handler {
	p := newPeerHandler(store, trees, log)
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+wire.PathHistory, p.replying(p.history))
	mux.HandleFunc("GET "+wire.PathProof, p.replying(p.page))
	mux.HandleFunc("POST "+wire.PathProofs, p.replying(p.lookUp))
	mux.HandleFunc("GET "+wire.PathChanges, p.replying(p.changes))
	mux.HandleFunc("GET "+wire.PathContent+"{digest}", p.replying(p.content))
	mux.HandleFunc("GET "+wire.PathBlocks+"{digest}", p.replying(p.blocks))
	mux.HandleFunc("/", noSuchPath)
	return mux
}

type peerHandler struct {
	store  *Store
	trees  Trees
	log    *slog.Logger
	proofs chan struct{} // places for proofs
	files  chan struct{} // and for whole trees
	lists  *blockLists
}

const (
	maxProofs = 64
	maxFiles  = 4
)

func newPeerHandler(store *Store, trees Trees, log *slog.Logger) *peerHandler {
	return &peerHandler{store: store, trees: trees, log: log, proofs: make(chan struct{}, maxProofs), files: make(chan struct{}, maxFiles), lists: newBlockLists()}
}

// requestTime bounds how long a request without a content may take to arrive,
// and its reply to leave.
const requestTime = 30 * time.Second

// replying makes a handler of f, whose error is the reply, and sets deadlines.
func (p *peerHandler) replying(f func(http.ResponseWriter, *http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		c := http.NewResponseController(w)
		if r.ContentLength != 0 {
			c.SetReadDeadline(time.Now().Add(requestTime))
		}
		c.SetWriteDeadline(time.Now().Add(2 * requestTime))
		err := f(w, r)
		if err == nil {
			return
		}
		var known *wire.Error
		if !errors.As(err, &known) && r.Context().Err() == nil {
			p.log.Error("request", "path", r.URL.Path, "error", err)
		}
		wire.WriteError(w, err)
	}
}

func badRequest(err error) error { return wire.Errorf(wire.CodeBadRequest, "%v", err) }

// history serves records and certificates as they lie on the disk: who asks
// verifies.
func (p *peerHandler) history(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	from, err := strconv.ParseUint(q.Get("from"), 10, 64)
	limit, err2 := strconv.Atoi(q.Get("limit"))
	if err := errors.Join(err, err2); err != nil || limit < 1 {
		return wire.Errorf(wire.CodeBadRequest, "from and limit must be numbers")
	}
	h := wire.History{Records: []wire.SignedRecord{}}
	for e := max(from, 1); len(h.Records) < min(limit, wire.MaxHistory); e++ {
		record, certificate, err := p.store.rawRecord(archive.Epoch(e))
		if err != nil {
			break
		}
		h.Records = append(h.Records, wire.SignedRecord{Record: string(record), Certificate: certificate})
	}
	wire.WriteJSON(w, h)
	return nil
}

// page serves the proof of a page of names under the current head.
func (p *peerHandler) page(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	head, err := archive.ParseDigest(q.Get("head"))
	if err != nil {
		return badRequest(err)
	}
	g, err := parseRange(q)
	if err != nil {
		return badRequest(err)
	}
	return p.proving(w, r, head, p.lendRemains, func(l *Lent) ([]byte, error) {
		return l.page(g.From, g.To, g.Limit)
	})
}

// lookUp serves the proofs of names under the current head, as many of the first
// as a reply holds.
func (p *peerHandler) lookUp(w http.ResponseWriter, r *http.Request) error {
	b, err := readBody(w, r, int64(wire.MaxProofsRequest))
	if err != nil {
		return err
	}
	q, err := wire.ParseProofsRequest(b)
	if err != nil {
		return badRequest(err)
	}
	return p.proving(w, r, q.Head, p.trees.Lend, func(l *Lent) (reply []byte, err error) {
		err = l.lookUp(q.Names, func(b bound) bool {
			if len(reply) > 0 && len(reply)+4+len(b.proof) > wire.MaxProofsReply {
				return false
			}
			reply = wire.AppendProof(reply, b.proof)
			return true
		})
		return reply, err
	})
}

// proving replies with what prove makes of a tree that lend lends under head.
func (p *peerHandler) proving(w http.ResponseWriter, r *http.Request, head archive.Digest, lend func() (*Lent, func(), error), prove func(*Lent) ([]byte, error)) error {
	leave, err := enter(r.Context(), p.proofs)
	if err != nil {
		return err
	}
	defer leave()
	lent, release, err := lend()
	if err != nil {
		return err
	}
	defer release()
	if lent.Head != head {
		return staleHead(lent)
	}
	reply, err := prove(lent)
	if err != nil {
		return p.damaged(lent, err)
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.Itoa(len(reply)))
	w.Write(reply) // the peer may be gone
	return nil
}

// lendRemains borrows the tree for a page of names, which a repair may need: one
// that is damaged will do, and what of it cannot be proven is not sent.
func (p *peerHandler) lendRemains() (*Lent, func(), error) {
	if o, ok := p.trees.(interface{ LendRemains() (*Lent, func(), error) }); ok {
		return o.LendRemains()
	}
	return p.trees.Lend()
}

// damaged tells the owner of the tree, if he wants to know, and the peer.
func (p *peerHandler) damaged(l *Lent, err error) error {
	if o, ok := p.trees.(interface{ Damaged(*Lent, error) }); ok {
		o.Damaged(l, err)
	}
	return errTreeDamaged
}

var errTreeDamaged = wire.Errorf(wire.CodeDamaged, "the tree is damaged; repair is under way")

// staleHead tells a peer which head it should ask under.
func staleHead(l *Lent) error {
	e := wire.Errorf(wire.CodeStaleHead, "the head is %s, of epoch %d", l.Head, l.Record.Epoch)
	e.Record, e.Certificate = string(l.Record.Bytes()), l.Certificate.Bytes()
	return e
}

// parseRange parses the range that a page is asked of.
func parseRange(v url.Values) (g wire.Range, err error) {
	if g.From, err = wire.DecodeBytes(v.Get("from"), archive.MaxName+1); err != nil {
		return g, err
	}
	if g.To, err = wire.DecodeBytes(v.Get("to"), archive.MaxName+1); err != nil {
		return g, err
	}
	if g.Limit, err = strconv.Atoi(v.Get("limit")); err != nil || g.Limit < 1 {
		return g, fmt.Errorf("%w: limit", archive.ErrFormat)
	}
	g.Limit = min(g.Limit, wire.MaxPage)
	return g, nil
}

// answer proves what an answer is asked for.
func (l *Lent) answer(q wire.AnswerRequest) (tree.Proof, error) {
	if q.Range != nil {
		return l.page(q.Range.From, q.Range.To, min(q.Range.Limit, wire.MaxFirst))
	}
	b, err := l.lookUpOne(q.Name)
	return b.proof, err
}

// page proves one page of the names from `from` to `to` (empty: to the end), of at
// most limit. It checks the proof as the one who asked will: a replica that finds
// its tree wrong answers nothing from it.
func (l *Lent) page(from, to []byte, limit int) (tree.Proof, error) {
	if len(to) == 0 {
		to = nil
	}
	proof, view, err := l.Tree.ViewRange(l.Record.Root, from, to, limit)
	if err == nil {
		err = l.counts(view)
	}
	if err == nil {
		_, _, err = view.Page(from, to)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errOwnTree, err)
	}
	return proof, nil
}

// counts checks that a proof is of a tree of as many names as the record has.
func (l *Lent) counts(v *tree.View) error {
	if v.Count() != l.Record.Names {
		return fmt.Errorf("%w: %d names, the record has %d", ErrDamaged, v.Count(), l.Record.Names)
	}
	return nil
}

// bound is what the tree proves of a name.
type bound struct {
	proof tree.Proof
	entry archive.Entry
	ok    bool // there is one
}

// lookUp shows what the tree proves of each of the names, until show wants no
// more. Proofs are checked as those of a page.
func (l *Lent) lookUp(names []archive.Name, show func(bound) (more bool)) error {
	keys := make([][]byte, len(names))
	for i, n := range names {
		keys[i] = []byte(n)
	}
	i := 0
	err := l.Tree.ViewNames(l.Record.Root, keys, func(p tree.Proof, v *tree.View) error {
		b := bound{proof: p}
		err := l.counts(v)
		if err == nil {
			b.entry, b.ok, err = archive.Lookup(v, names[i])
		}
		if err == nil && !show(b) {
			err = errEnough
		}
		i++
		return err
	})
	if err != nil && !errors.Is(err, errEnough) {
		return fmt.Errorf("%w: %w", errOwnTree, err)
	}
	return nil
}

func (l *Lent) lookUpOne(n archive.Name) (b bound, err error) {
	err = l.lookUp([]archive.Name{n}, func(x bound) bool { b = x; return true })
	return b, err
}

// errOwnTree says that the replica's own tree gave no proof that checks.
var errOwnTree = fmt.Errorf("own tree: %w", ErrDamaged)

// content serves a content, whole or in ranges, and HEAD.
func (p *peerHandler) content(w http.ResponseWriter, r *http.Request) error {
	d, err := archive.ParseDigest(r.PathValue("digest"))
	if err != nil {
		return badRequest(err)
	}
	f, err := p.store.OpenContent(d)
	if err != nil {
		return notOpened(d, err)
	}
	defer f.Close()
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("ETag", `"`+d.String()+`"`)
	http.ServeContent(&slowWriter{ResponseWriter: w}, r, "", time.Time{}, f)
	return nil
}

// notOpened tells a peer why a content could not be opened.
func notOpened(d archive.Digest, err error) error {
	switch {
	case errors.Is(err, ErrMissing):
		return wire.Errorf(wire.CodeMissing, "content %s is not here", d)
	case errors.Is(err, ErrDamaged):
		return wire.Errorf(wire.CodeDamaged, "content %s cannot be read", d)
	}
	return wire.Errorf(wire.CodeUnavailable, "content %s cannot be opened at the time", d)
}

// stride is how many bytes a peer must take or send within requestTime.
const stride = 64 << 10

// slowWriter gives the peer requestTime for each stride that it takes.
type slowWriter struct {
	http.ResponseWriter
	since int
}

func (w *slowWriter) Write(b []byte) (int, error) {
	n, err := w.ResponseWriter.Write(b)
	if w.since += n; w.since >= stride {
		w.since = 0
		http.NewResponseController(w.ResponseWriter).SetWriteDeadline(time.Now().Add(requestTime))
	}
	return n, err
}

// cleanPath refuses what http.ServeMux would answer with a redirect.
func cleanPath(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "//") || strings.Contains(r.URL.Path, "/.") {
			noSuchPath(w, r)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func noSuchPath(w http.ResponseWriter, _ *http.Request) {
	wire.WriteError(w, wire.Errorf(wire.CodeMissing, "no such path"))
}
