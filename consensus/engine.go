package consensus

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"time"

	dbm "github.com/cometbft/cometbft-db"
	cmtconfig "github.com/cometbft/cometbft/config"
	cmt "github.com/cometbft/cometbft/consensus"
	"github.com/cometbft/cometbft/crypto/ed25519"
	"github.com/cometbft/cometbft/mempool"
	"github.com/cometbft/cometbft/state"
	"github.com/cometbft/cometbft/store"
	"github.com/cometbft/cometbft/types"
)

// engine is CometBFT's consensus, put together from its parts: the state
// machine, its reactor and the peer-to-peer switch, and nothing else. There is
// no block or state sync, mempool, peer exchange, evidence, indexer or RPC, and
// no database: what must survive a kill is in the journal.
type engine struct {
	config  Config
	key     *key
	bus     *types.EventBus
	machine *cmt.State
	reactor *cmt.Reactor
	network *network
	blocks  *blocks
	halted  chan struct{} // closed when the machine ends, for whatever reason
}

func newEngine(ctx context.Context, c Config, j *journal) (*engine, error) {
	genesis, err := c.genesis()
	if err != nil {
		return nil, err
	}
	states := state.NewStore(dbm.NewMemDB(), state.StoreOptions{})
	if err := states.Save(genesis); err != nil {
		return nil, err
	}
	log := chatter{log: c.Log}
	e := &engine{config: c, key: newKey(c.Key), bus: types.NewEventBus(), halted: make(chan struct{})}
	e.blocks = &blocks{BlockStore: store.NewBlockStore(dbm.NewMemDB()), journal: j, decided: make(chan []byte, 1)}
	executor := state.NewBlockExecutor(states, log, &app{ctx: ctx, config: c},
		&mempool.NopMempool{}, state.EmptyEvidencePool{}, e.blocks)
	e.machine = cmt.NewState(c.consensus(j), genesis, executor, e.blocks, &mempool.NopMempool{}, state.EmptyEvidencePool{})
	e.machine.SetLogger(log)
	e.machine.SetPrivValidator(j.validator(e.key))
	e.reactor = cmt.NewReactor(e.machine, false)
	e.reactor.SetLogger(log)
	e.reactor.SetEventBus(e.bus)
	e.bus.SetLogger(log)
	e.network = newNetwork(c, e.key, e.reactor)
	return e, nil
}

// genesis follows from instance and members alone. The instance also picks the
// first leader, so that no replica leads, or fails to lead, every time.
func (c Config) genesis() (state.State, error) {
	doc := &types.GenesisDoc{
		GenesisTime:     genesisTime,
		ChainID:         c.chainID(),
		InitialHeight:   onlyHeight,
		ConsensusParams: types.DefaultConsensusParams(),
		AppHash:         appHash,
	}
	doc.ConsensusParams.Block.MaxBytes = int64(MaxBlock + overhead)
	doc.ConsensusParams.Evidence.MaxBytes = 0
	for _, m := range c.Members {
		doc.Validators = append(doc.Validators, types.GenesisValidator{PubKey: ed25519.PubKey(m.Key), Power: 1})
	}
	s, err := state.MakeGenesisState(doc)
	if err != nil {
		return state.State{}, err
	}
	turns := binary.BigEndian.Uint32(c.Instance[:]) % uint32(len(c.Members))
	s.Validators.IncrementProposerPriority(int32(turns) + 1)
	s.NextValidators = s.Validators.CopyIncrementProposerPriority(1)
	return s, nil
}

// chainID is the instance as the engine has room for it: base64url, 43 characters.
func (c Config) chainID() string { return base64.RawURLEncoding.EncodeToString(c.Instance[:]) }

// overhead bounds what the engine adds to a block: header and encodings.
const overhead = 1 << 16

func (c Config) consensus(j *journal) *cmtconfig.ConsensusConfig {
	k := cmtconfig.DefaultConsensusConfig()
	k.SetWalFile(j.wal())
	k.TimeoutPropose, k.TimeoutProposeDelta = c.Timeouts.Propose, c.Timeouts.ProposeDelta
	k.TimeoutPrevote, k.TimeoutPrevoteDelta = c.Timeouts.Vote, c.Timeouts.VoteDelta
	k.TimeoutPrecommit, k.TimeoutPrecommitDelta = c.Timeouts.Vote, c.Timeouts.VoteDelta
	k.TimeoutCommit = time.Millisecond // it also delays the first block
	k.CreateEmptyBlocks = false        // the second height never starts
	k.PeerGossipSleepDuration = gossip
	k.PeerQueryMaj23SleepDuration = 500 * time.Millisecond
	return k
}

const gossip = 5 * time.Millisecond

// start replays the log, if there is one, and begins. A panic in replay is an
// error: there the engine does not catch its own.
func (e *engine) start(ctx context.Context) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", ErrHalted, r)
		}
	}()
	if err := e.bus.Start(); err != nil {
		return err
	}
	if err := e.network.start(ctx); err != nil {
		return err
	}
	go func() {
		e.machine.Wait()
		close(e.halted)
	}()
	return nil
}

// wait returns the decided block, or why there is none.
func (e *engine) wait(ctx context.Context) ([]byte, error) {
	select {
	case block := <-e.blocks.decided:
		e.linger(ctx)
		return block, nil
	case <-e.halted:
	case <-ctx.Done():
	}
	select {
	case block := <-e.blocks.decided: // just before
		return block, nil
	default:
		return nil, cmp.Or(context.Cause(ctx), ErrHalted)
	}
}

// linger stays until every connected peer has decided, within Timeouts.Linger:
// a peer may still need this replica's last vote, which is sent by its own pace.
func (e *engine) linger(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, e.config.Timeouts.Linger)
	defer cancel()
	tick := time.NewTicker(gossip)
	defer tick.Stop()
	for !e.network.past(onlyHeight) {
		select {
		case <-tick.C:
		case <-e.halted:
			return
		case <-ctx.Done():
			return
		}
	}
}

// stop ends the engine. One that would not end is left behind, with a warning,
// and without its key.
func (e *engine) stop() {
	defer e.key.forget()
	done := make(chan struct{})
	go func() {
		defer close(done)
		e.network.stop()
		_ = e.bus.Stop()
	}()
	select {
	case <-done:
	case <-time.After(stopLimit):
		e.config.Log.Warn("engine does not stop")
	}
}

const stopLimit = 5 * time.Second

// blocks is the engine's store of blocks, in memory; the one that matters is
// journalled before the engine goes on.
type blocks struct {
	*store.BlockStore
	journal *journal
	decided chan []byte
}

// SaveBlock is the engine's word that block is decided.
func (b *blocks) SaveBlock(block *types.Block, parts *types.PartSet, seen *types.Commit) {
	if len(block.Txs) != 1 {
		panic("consensus: decided block without its transaction")
	}
	if err := b.journal.write("decided", block.Txs[0]); err != nil {
		panic(fmt.Sprintf("consensus: decided block not kept: %v", err))
	}
	b.BlockStore.SaveBlock(block, parts, seen)
	b.decided <- block.Txs[0]
}
