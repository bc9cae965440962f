import { Command } from '@commander-js/extra-typings';
import { choice } from './eval-choice';
import { needle } from './eval-needle';
import { perplexity } from './eval-perplexity';

export const command = new Command('eval')
  .description('Measures what a model can do.')
  .addCommand(perplexity)
  .addCommand(needle)
  .addCommand(choice);
