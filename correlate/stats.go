package correlate

// Stats are an Engine's counters since it was made, and what it holds now.
type Stats struct {
	Events        uint64 `json:"events"`
	UnknownEvents uint64 `json:"unknown_events"` // of a kind that this version does not know
	EventsLost    uint64 `json:"events_lost"`    // as KindLost told
	StaleEvents   uint64 `json:"stale_events"`   // of a socket that has been replaced already
	Logs          uint64 `json:"logs"`
	UnreadLogs    uint64 `json:"unread_logs"` // those that were wanted and are in no form that is known

	Stretches    uint64    `json:"stretches"`     // of threads' time
	BadStretches uint64    `json:"bad_stretches"` // that cannot be, or came after a later one
	Waits        WaitStats `json:"waits"`

	Requests RequestStats `json:"requests"` // of guests to their disks
	Objects  ObjectStats  `json:"objects"`

	Spans         uint64          `json:"spans"`
	OwnCalls      uint64          `json:"own_calls"`      // of the agent to XAPI, left out
	Probes        uint64          `json:"probes"`         // of cached connections between hosts, left out
	DatabaseCalls uint64          `json:"database_calls"` // of other hosts to the pool's database, left out
	Incomplete    uint64          `json:"incomplete"`     // of Spans
	Links         map[Link]uint64 `json:"links"`          // Spans by link method

	BadHeads     uint64 `json:"bad_heads"`     // messages on a server's socket that are not HTTP, too long or cut
	BadMessages  uint64 `json:"bad_messages"`  // message-switch bodies that could not be read to their end
	UnreadBodies uint64 `json:"unread_bodies"` // given up before they were complete: too many at once
	NoRequest    uint64 `json:"no_request"`    // replies, bodies and log lines whose beginning was not seen

	ActivitiesEvicted uint64 `json:"activities_evicted"` // too many
	ActivitiesAged    uint64 `json:"activities_aged"`    // open too long
	KeysAged          uint64 `json:"keys_aged"`          // messages and tasks whose other half never came
	ConnsEvicted      uint64 `json:"conns_evicted"`
	ThreadsEvicted    uint64 `json:"threads_evicted"`
	TimesEvicted      uint64 `json:"times_evicted"` // what was known of a thread's time
	MessagesEvicted   uint64 `json:"messages_evicted"`
	JobsEvicted       uint64 `json:"jobs_evicted"`
	TasksEvicted      uint64 `json:"tasks_evicted"`
	PushesEvicted     uint64 `json:"pushes_evicted"`
	HopsEvicted       uint64 `json:"hops_evicted"`
	CallersEvicted    uint64 `json:"callers_evicted"`    // sockets whose other end, or next owner, was still to come
	ErrandsEvicted    uint64 `json:"errands_evicted"`    // programs that forkexecd was to start
	DeliveriesDropped uint64 `json:"deliveries_dropped"` // messages for which their reader made no thread
	Reassigned        uint64 `json:"reassigned"`         // messages answered by another thread than expected
	Conflicts         uint64 `json:"conflicts"`          // keys that named a parent in another trace or of another task

	Activities int `json:"activities"`
	Trees      int `json:"trees"`
	Conns      int `json:"conns"`
	Threads    int `json:"threads"`
	Times      int `json:"times"` // threads whose time is known
	Keys       int `json:"keys"`
}

// Stats returns the counters.
func (e *Engine) Stats() Stats {
	s := e.stats
	s.Links = make(map[Link]uint64, len(links))
	for i, l := range links {
		s.Links[l] = e.activities.byLink[i]
	}
	s.Activities = e.activities.live.len
	s.Trees = e.trees.len
	s.Conns = len(e.conns.byFD)
	s.Threads = len(e.threads.byTID)
	s.Times = len(e.times.byTID)
	s.Objects.Known = e.objects.len()
	s.Requests.Held = e.requests.held.len
	s.Keys = e.messages.len() + e.jobs.len() + e.tasks.len() + e.ended.len() + e.pushes.len() +
		e.hopsOut.len() + e.hopsIn.len() + e.callers.len() + e.handed.len() + e.errands.len()
	return s
}

var links = [...]Link{LinkTraceparent, LinkSocket, LinkThread, LinkTask, LinkClone, LinkFork, LinkQueue, LinkNone}

func linkIndex(l Link) int {
	for i := range links {
		if links[i] == l {
			return i
		}
	}
	return len(links) - 1
}
