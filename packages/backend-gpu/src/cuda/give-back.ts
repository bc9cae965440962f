/**
 * Takes every step, whatever fails: a lost device gives nothing back, and says so
 * each time.
 */
export function giveBack(steps: Iterable<() => void>): void {
  for (const step of steps) {
    try {
      step();
    } catch {}
  }
}
