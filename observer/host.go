package observer

// Host is the host on which dtagent runs, as the default attributes name it.
type Host struct {
	UUID     string // host uuid, INSTALLATION_UUID of /etc/xensource-inventory
	Name     string // name_label of the host
	PoolUUID string
}
