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

// specs returns the objects of a tier.
func specs(t Tier) (map[Probe]*ebpf.CollectionSpec, error) {
	loaders := map[Probe]func() (*ebpf.CollectionSpec, error){
		Stream: loadLegacyStream, Process: loadLegacyProcess, Wait: loadLegacyWait, Disk: loadLegacyDisk,
		Tapdisk: loadLegacyTapdisk,
	}
	if t == Modern {
		loaders = map[Probe]func() (*ebpf.CollectionSpec, error){
			Stream: loadModernStream, Process: loadModernProcess, Wait: loadModernWait, Disk: loadModernDisk,
			Tapdisk: loadModernTapdisk,
		}
	}
	out := map[Probe]*ebpf.CollectionSpec{}
	for p, load := range loaders {
		spec, err := load()
		if err != nil {
			return nil, fmt.Errorf("%s object of probe %s: %w", t, p, err)
		}
		out[p] = spec
	}
	return out, nil
}

// chosen returns the programs of a probe that the hooks of this kernel take. Those
// of the legacy tier that are attached count their runs.
func (s *Session) chosen(p Probe, all map[string]*ebpf.ProgramSpec) map[string]*ebpf.ProgramSpec {
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

// Load loads the maps and programs of all probes and attaches nothing. Only one
// Session should exist at a time; nothing prevents more.
func (k *Kernel) Load() (_ *Session, err error) {
	spec, err := specs(k.tier)
	if err != nil {
		return nil, err
	}
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
		for _, hooks := range k.hooks {
			n += len(hooks)
		}
		if s.maps[runsMap], err = newRuns(n); err != nil {
			return nil, fmt.Errorf("map %s: %w", runsMap, err)
		}
	}
	for _, p := range allProbes {
		for name, n := range map[string]int{
			"dt_conns": k.opt.Conns, "dt_gathers": k.opt.Gathers, "dt_targets": k.opt.TargetsMax, "dt_inflight": k.opt.InflightMax,
			"dt_threads": k.opt.InflightMax, "dt_bios": k.opt.BiosMax, "dt_disk_stats": k.opt.DisksMax,
			"dt_taps": k.opt.DisksMax, "dt_tap_confs": k.opt.DisksMax, "dt_tap_hists": k.opt.DisksMax, "dt_iocbs": k.opt.BiosMax, "dt_parts": k.opt.BiosMax, "dt_belows": k.opt.BiosMax,
		} {
			if m := spec[p].Maps[name]; m != nil {
				m.MaxEntries = uint32(n)
			}
		}
		if k.tier == Modern {
			spec[p].Maps["dt_events"].MaxEntries = uint32(k.opt.RingBytes)
		}
		if err := fitLossMap(spec[p].Maps[lossMap]); err != nil {
			return nil, err
		}
		spec[p].Programs = s.chosen(p, spec[p].Programs)
		if len(k.dispatched[p]) == 0 {
			for _, name := range tables(p) {
				delete(spec[p].Maps, name)
			}
		}
		shared := map[string]*ebpf.Map{}
		for name := range spec[p].Maps {
			if m := s.maps[name]; m != nil {
				shared[name] = m
			}
		}
		c, err := ebpf.NewCollectionWithOptions(spec[p], ebpf.CollectionOptions{MapReplacements: shared})
		if err != nil {
			var ve *ebpf.VerifierError
			if errors.As(err, &ve) {
				return nil, fmt.Errorf("load probe %s (%s tier): %+v", p, k.tier, ve)
			}
			return nil, fmt.Errorf("load probe %s (%s tier): %w", p, k.tier, err)
		}
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
			return nil, fmt.Errorf("probe %s: %w", p, err)
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
	if err := errors.Join(s.describeCalls(), s.describeDisks(spec[Disk]), s.describeTapdisks(spec[Tapdisk])); err != nil {
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
