package consensus

import (
	"crypto/ed25519"
	"errors"
	"slices"
	"sync"

	"github.com/cometbft/cometbft/crypto"
	cmted25519 "github.com/cometbft/cometbft/crypto/ed25519"
)

var errForgotten = errors.New("agreement key is forgotten")

// key is the agreement key as the engine holds it. A dial or a handshake that is
// under way when the engine stops goes on for some seconds, and finds the key gone.
type key struct {
	public cmted25519.PubKey

	mu      sync.Mutex
	private cmted25519.PrivKey // nil: forgotten
}

func newKey(k ed25519.PrivateKey) *key {
	return &key{public: cmted25519.PubKey(k.Public().(ed25519.PublicKey)), private: slices.Clone(cmted25519.PrivKey(k))}
}

// forget clears the key; after it, Sign is an error.
func (k *key) forget() {
	k.mu.Lock()
	defer k.mu.Unlock()
	clear(k.private)
	k.private = nil
}

// Sign is what the engine does with the key, for its votes and in handshakes.
func (k *key) Sign(msg []byte) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.private == nil {
		return nil, errForgotten
	}
	return k.private.Sign(msg)
}

func (k *key) PubKey() crypto.PubKey { return k.public }

// The engine never writes its key, nor compares it: Bytes gives nothing out.
func (k *key) Bytes() []byte                { return nil }
func (k *key) Equals(o crypto.PrivKey) bool { return k == o }
func (k *key) Type() string                 { return cmted25519.KeyType }
