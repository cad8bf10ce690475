package archivetest_test

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bonafide-archive/bonafide/archive"
	"github.com/bonafide-archive/bonafide/archive/archivetest"
	"github.com/bonafide-archive/bonafide/archive/wire"
)

// liar is a replica in its service phase that has fallen: under its own TLS key
// it answers what an honest one answers, with one byte changed in each body.
type liar struct {
	lies atomic.Int64 // bodies sent
}

// newLiar takes the address of replica id, whose own process must be down, and
// takes its answers from replica honest.
func newLiar(t testing.TB, c *cluster, id, honest uint32) *liar {
	t.Helper()
	config, err := wire.ServiceTLS(readKey(t, filepath.Join(c.replicaDir(id), "service.key")))
	if err != nil {
		t.Fatal(err)
	}
	m, _ := c.roster.Replica(id)
	var l net.Listener
	archivetest.Eventually(t, 30*time.Second, "the address is free", func() bool {
		l, err = net.Listen("tcp", m.Address)
		return err == nil
	})
	source, _ := c.roster.Replica(honest)
	from := wire.NewClient(source, c.roster, wire.Options{})
	lie := new(liar)
	s := &http.Server{
		TLSConfig: config, ErrorLog: log.New(io.Discard, "", 0),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { lie.answer(w, r, from) }),
	}
	go s.ServeTLS(l, "", "")
	t.Cleanup(func() { s.Close(); from.Close() })
	return lie
}

func (l *liar) answer(w http.ResponseWriter, r *http.Request, from *wire.Client) {
	req, err := http.NewRequestWithContext(r.Context(), r.Method, from.URL(r.URL.RequestURI()), r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	req.Header = r.Header.Clone()
	resp, err := from.HTTP().Do(req)
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, archive.MaxAnswer))
	if len(body) > 0 {
		body[len(body)/2] ^= 1
		l.lies.Add(1)
	}
	for _, h := range []string{"Content-Type", "Content-Range", "Accept-Ranges"} {
		if v := resp.Header.Get(h); v != "" {
			w.Header().Set(h, v)
		}
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(resp.StatusCode)
	w.Write(body)
}

func readKey(t testing.TB, file string) ed25519.PrivateKey {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(b)
	if block == nil {
		t.Fatalf("%s: no PEM", file)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return key.(ed25519.PrivateKey)
}
