/**
 * Milliseconds that this process has computed for, on all of its threads.
 * Limits are held to this, not to the clock: a busy machine is not the code's
 * fault.
 */
export function cpuTime(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1000;
}
