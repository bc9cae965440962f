import { checkLaws } from './check-laws';

checkLaws('gradients');
