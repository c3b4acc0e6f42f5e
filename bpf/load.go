//go:build linux

package bpf

import (
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
)

// pollEvery is how often the reader looks at the buffers while something is
// attached; a record waits for it at most, see watermark.
const (
	pollEvery = 10 * time.Millisecond
	pollIdle  = time.Second
)

// watermark is how full a buffer of that size is when the reader is woken: the
// wakeup costs the victim more than making the record does, so it is rare.
func watermark(size int) int { return max(size/8, 1) }

// loaders read the objects.
var loaders = map[Tier]map[Probe]func() (*ebpf.CollectionSpec, error){
	Legacy: {Stream: loadLegacyStream, Process: loadLegacyProcess, Wait: loadLegacyWait, Disk: loadLegacyDisk, Tapdisk: loadLegacyTapdisk},
	Modern: {Stream: loadModernStream, Process: loadModernProcess, Wait: loadModernWait, Disk: loadModernDisk, Tapdisk: loadModernTapdisk},
}

// specOf returns the object of a probe.
func specOf(t Tier, p Probe) (*ebpf.CollectionSpec, error) {
	spec, err := loaders[t][p]()
	if err != nil {
		return nil, fmt.Errorf("%s object of probe %s: %w", t, p, err)
	}
	return spec, nil
}

// chosen returns the programs of a probe that the hooks of this kernel take. Those
// of the legacy tier that are attached count their runs.
func (s *Session) chosen(p Probe, all map[string]*ebpf.ProgramSpec) map[string]*ebpf.ProgramSpec {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]*ebpf.ProgramSpec{}
	for _, h := range s.kernel.hooks[p] {
		if out[h.program] != nil {
			continue
		}
		out[h.program] = all[h.program]
		if s.tier == Legacy {
			s.runs[h.program] = uint32(len(s.runs))
			out[h.program] = counted(all[h.program], s.maps[runsMap].FD(), s.runs[h.program])
		}
	}
	for _, h := range s.kernel.dispatched[p] {
		out[h.program] = all[h.program]
	}
	return out
}

// loadedLate tells whether a probe is loaded when it is needed first: few hosts need
// it, and the verifier looks at it for long.
func loadedLate(p Probe) bool { return p == Tapdisk }

// Load loads the maps and programs of the probes, but for those that are loaded when
// they are attached first, and attaches nothing. Only one Session should exist at a
// time; nothing prevents more.
func (k *Kernel) Load() (_ *Session, err error) {
	s := &Session{
		kernel: k,
		tier:   k.tier,
		maps:   map[string]*ebpf.Map{},
		progs:  map[Probe]map[string]*ebpf.Program{},
		links:  map[Probe][]attached{},
		runs:   map[string]uint32{},
		sweep:  make(chan struct{}),
		read:   make(chan struct{}),
	}
	defer func() {
		if err != nil {
			s.free()
		}
	}()
	if s.tier == Legacy {
		s.call = callTime()
		n := 0
		for p, all := range hooks {
			n += len(all) + len(dispatchers[p])
		}
		if s.maps[runsMap], err = newRuns(n); err != nil {
			return nil, fmt.Errorf("map %s: %w", runsMap, err)
		}
	}
	for _, p := range allProbes {
		if !loadedLate(p) {
			if err := s.load(p); err != nil {
				return nil, err
			}
		}
	}
	if s.losses, err = newLossCounters(s.maps[lossMap]); err != nil {
		return nil, err
	}
	conf := k.config
	conf.Wake = uint32(watermark(k.opt.RingBytes))
	if err := s.maps["dt_config"].Put(uint32(0), conf); err != nil {
		return nil, fmt.Errorf("map dt_config: %w", err)
	}
	s.conf = conf
	if err := s.describeCalls(); err != nil {
		return nil, err
	}
	if k.tier == Modern {
		r, err := ringbuf.NewReader(s.maps["dt_events"])
		if err != nil {
			return nil, fmt.Errorf("ring buffer: %w", err)
		}
		s.buffer = &ringBuffer{r: r}
	} else {
		r, err := newPerfRings(s.maps["dt_events"], k.opt.PerfBytes, watermark(k.opt.PerfBytes))
		if err != nil {
			return nil, fmt.Errorf("perf buffer: %w", err)
		}
		s.buffer = r
	}
	s.seq = newSequence()
	go s.sweeper()
	return s, nil
}

// loadLate loads a probe that is not loaded yet. It needs s.attach.
func (s *Session) loadLate(p Probe) error {
	s.mu.Lock()
	loaded, closed := s.progs[p] != nil, s.closed
	s.mu.Unlock()
	switch {
	case closed:
		return errClosed
	case loaded:
		return nil
	case len(s.kernel.hooks[p]) == 0:
		return fmt.Errorf("probe %s: this kernel lacks its tracepoints; `dtagent check` says which", p)
	}
	if fresh := s.kernel.again(p); fresh != nil {
		s.mu.Lock()
		s.kernel.adopt(p, fresh)
		s.mu.Unlock()
	}
	return s.load(p)
}

// load loads the maps and programs of a probe. It needs s.attach or that nobody else
// has the Session.
func (s *Session) load(p Probe) error {
	spec, err := specOf(s.tier, p)
	if err != nil {
		return err
	}
	o := s.kernel.opt
	for name, n := range map[string]int{
		"dt_conns": o.Conns, "dt_gathers": o.Gathers, "dt_targets": o.TargetsMax, "dt_inflight": o.InflightMax, "dt_threads": o.InflightMax,
		"dt_bios": o.BiosMax, "dt_iocbs": o.BiosMax, "dt_parts": o.BiosMax, "dt_belows": o.BiosMax,
		"dt_disk_stats": o.DisksMax, "dt_taps": o.DisksMax, "dt_tap_confs": o.DisksMax, "dt_tap_hists": o.DisksMax,
	} {
		if m := spec.Maps[name]; m != nil {
			m.MaxEntries = uint32(n)
		}
	}
	if s.tier == Modern {
		spec.Maps["dt_events"].MaxEntries = uint32(s.kernel.opt.RingBytes)
	}
	if err := fitLossMap(spec.Maps[lossMap]); err != nil {
		return err
	}
	spec.Programs = s.chosen(p, spec.Programs)
	if len(s.kernel.dispatched[p]) == 0 {
		for _, name := range tables(p) {
			delete(spec.Maps, name)
		}
	}
	shared := map[string]*ebpf.Map{}
	for name := range spec.Maps {
		if m := s.maps[name]; m != nil {
			shared[name] = m
		}
	}
	c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: shared})
	if err != nil {
		var ve *ebpf.VerifierError
		if errors.As(err, &ve) {
			return fmt.Errorf("load probe %s (%s tier): %+v", p, s.tier, ve)
		}
		return fmt.Errorf("load probe %s (%s tier): %w", p, s.tier, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, m := range c.Maps {
		if shared[name] == nil {
			s.maps[name] = m
			delete(c.Maps, name)
		}
	}
	s.progs[p] = c.Programs
	c.Programs = nil
	c.Close()
	if err := s.fillTables(p); err != nil {
		return fmt.Errorf("probe %s: %w", p, err)
	}
	switch p {
	case Disk:
		return s.describeDisks(spec)
	case Tapdisk:
		return s.describeTapdisks(spec)
	}
	return nil
}
