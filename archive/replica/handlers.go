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
	mux.HandleFunc("GET "+wire.PathProof, p.replying(p.proof))
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

// proof serves proofs under the current head.
func (p *peerHandler) proof(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	head, err := archive.ParseDigest(q.Get("head"))
	if err != nil {
		return badRequest(err)
	}
	query, err := parseQuery(q)
	if err != nil {
		return badRequest(err)
	}
	leave, err := enter(r.Context(), p.proofs)
	if err != nil {
		return err
	}
	defer leave()
	lent, release, err := p.lendFor(query)
	if err != nil {
		return err
	}
	defer release()
	if lent.Head != head {
		return staleHead(lent)
	}
	proof, err := query.prove(lent)
	if err != nil {
		return p.damaged(lent, err)
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.Itoa(len(proof)))
	w.Write(proof) // the peer may be gone
	return nil
}

// lendFor borrows the tree. For a page of names, which a repair may need, one
// that is damaged will do: what of it cannot be proven is not sent.
func (p *peerHandler) lendFor(q query) (*Lent, func(), error) {
	lent, release, err := p.trees.Lend()
	o, ok := p.trees.(interface{ LendRemains() (*Lent, func(), error) })
	if ok && q.name == nil && errors.Is(err, errTreeDamaged) {
		return o.LendRemains()
	}
	return lent, release, err
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

// query is what is asked of a tree: a name, or else a page of a range.
type query struct {
	name     []byte
	from, to []byte
	limit    int
}

func parseQuery(v url.Values) (q query, err error) {
	if v.Has("name") {
		q.name, err = wire.DecodeBytes(v.Get("name"), archive.MaxName)
		if err != nil {
			return q, err
		}
		return q, archive.Name(q.name).Check()
	}
	if q.from, err = wire.DecodeBytes(v.Get("from"), archive.MaxName+1); err != nil {
		return q, err
	}
	if v.Has("to") {
		if q.to, err = wire.DecodeBytes(v.Get("to"), archive.MaxName+1); err != nil {
			return q, err
		}
	}
	if q.limit, err = strconv.Atoi(v.Get("limit")); err != nil || q.limit < 1 {
		return q, fmt.Errorf("%w: limit", archive.ErrFormat)
	}
	q.limit = min(q.limit, wire.MaxPage)
	return q, nil
}

func answerQuery(a wire.AnswerRequest) query {
	if a.Range == nil {
		return query{name: []byte(a.Name)}
	}
	q := query{from: a.Range.From, limit: min(a.Range.Limit, wire.MaxFirst)}
	if len(a.Range.To) > 0 {
		q.to = a.Range.To
	}
	return q
}

// prove returns the proof that answers q, once it has checked it as the one who
// asks will: a replica that finds its tree wrong answers nothing from it.
func (q query) prove(l *Lent) (proof tree.Proof, err error) {
	if q.name != nil {
		proof, err = l.Tree.Prove(q.name)
		if err == nil {
			err = q.decides(l.Record, proof)
		}
	} else {
		proof, err = q.page(l)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errOwnTree, err)
	}
	return proof, nil
}

// page is prove for a range. The tree has checked the proof against the root.
func (q query) page(l *Lent) (tree.Proof, error) {
	proof, view, err := l.Tree.ViewRange(l.Record.Root, q.from, q.to, q.limit)
	if err != nil {
		return nil, err
	}
	if view.Count() != l.Record.Names {
		return nil, fmt.Errorf("%w: %d names, the record has %d", ErrDamaged, view.Count(), l.Record.Names)
	}
	_, _, err = view.Page(q.from, q.to)
	return proof, err
}

// errOwnTree says that the replica's own tree gave no proof that checks.
var errOwnTree = fmt.Errorf("own tree: %w", ErrDamaged)

func (q query) decides(rec archive.EpochRecord, proof tree.Proof) error {
	view, err := archive.VerifyProof(rec, proof)
	if err != nil {
		return err
	}
	_, _, err = archive.Lookup(view, archive.Name(q.name))
	return err
}

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
